"""transformers' ``AutoConfig``, ``AutoModel`` and ``pipeline`` for the model folders of this project.

Nothing is registered by the import; ``register()`` does it, and no code from a model's repository is ever run.
"""

from __future__ import annotations

from refervos.errors import require_installed

TASK = "referring-video-segmentation"
"""Name of the task for transformers' ``pipeline``."""


def register() -> None:
    """Make transformers load this project's models; calling it again changes nothing.

    Afterwards ``AutoConfig.from_pretrained`` and ``AutoModel.from_pretrained`` read model folders and hub ids, and
    ``pipeline("referring-video-segmentation", model=folder)("x.mp4", text="the dog")`` yields the masks.

    Raises:
        MissingDependencyError: When transformers is not installed.
    """
    require_installed("refervos.hf", "transformers", "transformers")
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from refervos.hf.models import FIRST_MODELS, MODELS
    from refervos.hf.video_pipeline import ReferringVideoSegmentationPipeline

    for model in (*MODELS, *FIRST_MODELS):
        config = model.config_class
        known = config.model_type in CONFIG_MAPPING and CONFIG_MAPPING[config.model_type]
        if known not in (False, config) and model in FIRST_MODELS:
            continue  # transformers has a model of its own of that name
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, ReferringVideoSegmentationPipeline, pt_model=AutoModel)
