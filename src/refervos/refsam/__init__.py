"""RefSAM: a SAM that reads sentences, frame by frame, with one token that carries the object on."""
