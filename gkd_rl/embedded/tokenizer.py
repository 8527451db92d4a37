"""Word tokenizer of the generated news: a normal fast tokenizer, one id per word."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gkd_rl.embedded.grammar import vocabulary

SPECIAL = ("<pad>", "</s>", "<unk>")  # T5's ids: pad 0, end of sequence 1, unknown 2


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer over the generator's whole vocabulary; every text ends in `</s>`, as T5's do.

    A pair has one in front as well, where classifiers of pairs collect what they found.
    """
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", pair="</s> $A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
