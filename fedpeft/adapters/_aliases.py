"""Names that mean another thing elsewhere, or several: choosing one is refused with what to write instead."""

__all__ = ["ALIASES"]

ALIASES = {
    "adalora": "AdaLoRA is not here; ranks are fixed by adapter 'lora' (rank_pattern), or drawn by strategy 'dylora'",
    "adapter": "say which: 'bottleneck' (Houlsby, Pfeiffer) or 'llm_adapters' (series, parallel)",
    "bitfit": "write 'bias'; it trains the biases of linear layers, and not those of norms",
    "compacter": "Compacter is not here; 'bottleneck' is the nearest",
    "deft": "two methods bear this name, a density loss and peft's Decompositional Efficient Fine-Tuning; none is here",
    "houlsby": "write 'bottleneck' with placement = 'both'",
    "ln_tuning": "training of norms alone is not here; the nearest in size is 'ia3'",
    "loraga": "write 'lora_ga'; it follows the paper's rule and not peft's",
    "parallel": "write 'llm_adapters' with form = 'parallel'",
    "pfeiffer": "write 'bottleneck' with placement = 'feed_forward'",
    "p_tuning": "P-tuning draws its vectors through a network of their own; the nearest is 'prompt_tuning'",
    "prefix": "prefix tuning trains keys and values of every block; the nearest is 'prompt_tuning', at the input alone",
    "prefix_tuning": "it trains keys and values of every block; the nearest is 'prompt_tuning', at the input alone",
    "prompt": "write 'prompt_tuning'; prompts in every block are not here",
    "qlora": "QLoRA is 'lora' on a base loaded in four bits; such loading is not here, and 'peqa' is near",
    "rslora": "write 'lora' with rslora = true",
    "s2": "several methods shorten to this name; 's2ft' is structured sparse fine-tuning",
    "sora": "SoMA's authors call its code so; write 'soma'",
    "tlora": "several papers bear this name, and none of them is here",
    "vpt": "write 'prompt_tuning', its shallow form; prompts in every block are not here",
}
"""Name -> what to do; none is a plug-in's."""
