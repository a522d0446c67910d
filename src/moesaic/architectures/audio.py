"""Audio-language composites that build whatever language model their `text_config` says."""

from __future__ import annotations

from moesaic.architectures.wrapper import NEW_NAMES, OLD_NAMES, Wrapper

EITHER = (OLD_NAMES, NEW_NAMES)


def hard_coded(class_name: str) -> dict[str, str]:
    """Return the refusal for composites in which vLLM builds one class, whatever text_config says."""
    return {"vllm": f"vLLM builds a {class_name} here, whatever text_config says"}


QWEN2_AUDIO = Wrapper(
    "qwen2_audio", "Qwen2AudioForConditionalGeneration", EITHER, not_served=hard_coded("Qwen2ForCausalLM")
)
VOXTRAL = Wrapper("voxtral", "VoxtralForConditionalGeneration", EITHER)
GRANITE_SPEECH = Wrapper("granite_speech", "GraniteSpeechForConditionalGeneration", EITHER)
AUDIO_FLAMINGO3 = Wrapper(
    "audioflamingo3", "AudioFlamingo3ForConditionalGeneration", EITHER, not_served=hard_coded("Qwen2ForCausalLM")
)
MUSIC_FLAMINGO = Wrapper(
    "musicflamingo", "MusicFlamingoForConditionalGeneration", EITHER, not_served=hard_coded("Qwen2ForCausalLM")
)
GLM_ASR = Wrapper("glmasr", "GlmAsrForConditionalGeneration", EITHER, not_served=hard_coded("LlamaForCausalLM"))
QWEN3_ASR = Wrapper("qwen3_asr", "Qwen3ASRForConditionalGeneration", EITHER, not_served=hard_coded("Qwen3ForCausalLM"))
VIBEVOICE_ASR = Wrapper("vibevoice_asr", "VibeVoiceAsrForConditionalGeneration", EITHER)
