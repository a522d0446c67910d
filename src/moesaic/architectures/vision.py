"""Vision-language composites that build whatever language model their `text_config` says."""

from __future__ import annotations

from moesaic.architectures.wrapper import NEW_NAMES, OLD_NAMES, Wrapper

EITHER = (OLD_NAMES, NEW_NAMES)
IDEFICS = ({"model.": "model.text_model.", "lm_head.": "lm_head."},)
HARD_CODED = {"vllm": "vLLM builds a LlamaModel here, whatever text_config says"}

LLAVA = Wrapper("llava", "LlavaForConditionalGeneration", EITHER)
LLAVA_NEXT = Wrapper("llava_next", "LlavaNextForConditionalGeneration", EITHER)
LLAVA_ONEVISION = Wrapper("llava_onevision", "LlavaOnevisionForConditionalGeneration", EITHER)
INTERNVL = Wrapper("internvl", "InternVLForConditionalGeneration", EITHER)
MISTRAL3 = Wrapper("mistral3", "Mistral3ForConditionalGeneration", EITHER)
AYA_VISION = Wrapper("aya_vision", "AyaVisionForConditionalGeneration", EITHER)
OVIS2 = Wrapper(
    "ovis2",
    "Ovis2ForConditionalGeneration",
    EITHER,
    not_served={"transformers4": "before 5.0 the class builds a Qwen2Model, whatever text_config says"},
)
FAST_VLM = Wrapper("fast_vlm", "FastVlmForConditionalGeneration", EITHER)
PERCEPTION_LM = Wrapper("perception_lm", "PerceptionLMForConditionalGeneration", EITHER)
LFM2_VL = Wrapper("lfm2_vl", "Lfm2VlForConditionalGeneration", EITHER)
DEEPSEEK_VL = Wrapper("deepseek_vl", "DeepseekVLForConditionalGeneration", EITHER)
JANUS = Wrapper("janus", "JanusForConditionalGeneration", EITHER)
IDEFICS3 = Wrapper("idefics3", "Idefics3ForConditionalGeneration", IDEFICS, not_served=HARD_CODED)
SMOLVLM = Wrapper("smolvlm", "SmolVLMForConditionalGeneration", IDEFICS, not_served=HARD_CODED)
