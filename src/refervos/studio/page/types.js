/**
 * The shapes of the data that the page works with. What the server sends is described in docs/serving.md; the state of a
 * session is read from it by server_state.js.
 *
 * @typedef {object} Problem An error as application/problem+json.
 * @property {string} title
 * @property {number} status
 * @property {string} detail One sentence.
 * @property {string} code
 *
 * @typedef {object} Limits
 * @property {number} upload_bytes
 * @property {number} duration Longest recording in seconds.
 * @property {number} frames
 * @property {number} side Largest width or height in pixels.
 * @property {number} sentences Sentences in a session.
 * @property {number} words Words in a sentence.
 * @property {number} sessions
 * @property {{files: boolean, cameras: boolean, urls: boolean, webhooks: string[]}} [allowed] Sources that the operator allows
 *   besides uploads, and the hosts to which alerts may be posted.
 *
 * @typedef {object} Model
 * @property {string} name
 * @property {string} title
 * @property {string[]} closed_vocabulary The only words that it knows; empty for a model that knows all.
 * @property {boolean} conversation Whether it answers questions.
 *
 * @typedef {object} Sample A drawn clip of the gallery.
 * @property {string} id
 * @property {string} title
 * @property {string[]} expressions
 * @property {string} poster Address of a picture.
 *
 * @typedef {object} Video
 * @property {string} id
 * @property {string} name
 * @property {number} width
 * @property {number} height
 * @property {number | null} fps
 * @property {number | null} frame_count
 * @property {number | null} duration Seconds.
 * @property {boolean} playable Whether browsers can play the file.
 * @property {number[] | null} pts Time of each frame in seconds since the first; null if frame k is shown at k / fps.
 * @property {number} start_time Time of the first frame in the file, in seconds.
 *
 * @typedef {object} Track
 * @property {number} id
 * @property {string} expression
 * @property {string | null} label Name given by the user.
 * @property {[number, string][]} prompts Its sentences with the frame from which each holds; the last is `expression`.
 * @property {string} colour As "#rrggbb".
 * @property {boolean} visible
 * @property {[number, number][]} presence Pairs of a frame and the presence from there to the next pair.
 * @property {number} corrections How many corrections `undo` can take back.
 *
 * @typedef {object} SessionEvent
 * @property {"correction" | "switch" | "cut" | "alert" | "outage"} kind
 * @property {number} frame
 * @property {number | null} time Seconds.
 * @property {number | null} track
 * @property {string} [text]
 * @property {[number, number, number][]} [points] Of a correction: x, y in pixels and 1 (on the object) or 0 (off it).
 * @property {[number, number, number, number] | null} [box]
 *
 * @typedef {object} Alert
 * @property {number} track
 * @property {number} threshold
 * @property {"above" | "below"} when
 * @property {number} frames
 * @property {boolean} webhook Whether it is posted to a webhook.
 *
 * @typedef {object} Effect
 * @property {"colour" | "outline" | "blur" | "pixelate" | "spotlight" | "cutout"} kind
 * @property {"object" | "background"} area What is blurred or pixelated.
 * @property {number} strength From 0 to 1.
 *
 * @typedef {"idle" | "running" | "paused" | "finished"} Status
 *
 * @typedef {object} SessionState
 * @property {string} id
 * @property {string} model
 * @property {{kind: "video" | "camera" | "url" | "webcam", name: string, address?: string}} source
 * @property {Video | null} video The recording, if the source is one.
 * @property {boolean} live
 * @property {Status} status
 * @property {number} frame Newest frame with masks; -1 before the first.
 * @property {number} until Last frame that a correction or a step is going to reach; -1 if none.
 * @property {number | null} frame_count
 * @property {number} fps Measured frames per second.
 * @property {number | null} estimate Frames per second to expect before any were measured.
 * @property {[number, number]} range First and last frame to segment.
 * @property {Track[]} tracks
 * @property {SessionEvent[]} events
 * @property {Alert[]} alerts
 * @property {boolean} recording Whether the pictures of a live source are kept for exports.
 * @property {number} recorded Number of frames whose pictures are kept.
 *
 * @typedef {object} ExportJob
 * @property {string} id
 * @property {"queued" | "running" | "done" | "failed" | "cancelled" | "interrupted"} status
 * @property {string[]} outputs The formats that it writes.
 * @property {number} done Frames.
 * @property {number | null} total Frames.
 * @property {Problem | null} problem
 * @property {string[]} files Their names.
 *
 * @typedef {object} AnswerPart
 * @property {string} text
 * @property {number | null} [track] Of a phrase with masks.
 * @property {[number, number, number] | null} [colour] Red, green and blue from 0 to 255.
 *
 * @typedef {object} AskedQuestion
 * @property {string} question
 * @property {AnswerPart[]} parts The answer.
 * @property {string[]} unknown_words Words of the question that the model cannot read.
 * @property {string | null} problem What ended the answer, if anything did.
 *
 * @typedef {object} TrackMask The mask of one track in one frame.
 * @property {number} id
 * @property {number} presence
 * @property {Uint32Array} runs Lengths of alternating runs of 0 and 1, down the columns, beginning with 0 (COCO).
 *
 * @typedef {object} FrameMasks
 * @property {number} frame
 * @property {number} time Seconds.
 * @property {number} width Of the masks.
 * @property {number} height
 * @property {TrackMask[]} tracks
 */
export {};
