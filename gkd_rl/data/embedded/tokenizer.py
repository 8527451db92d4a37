"""Tokenizers of the generated texts: normal fast tokenizers, one id per word, or subwords learnt from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gkd_rl.data.embedded.news import vocabulary

SPECIAL = ("<pad>", "</s>", "<unk>")  # T5's ids: pad 0, end of sequence 1, unknown 2


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer over the whole vocabulary of the generated news."""
    return word_tokenizer(vocabulary())


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """As `build_tokenizer`, for classifiers of pairs: it tells which of the two texts a token is of."""
    return word_tokenizer(vocabulary(), model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def word_tokenizer(words: Iterable[str], **settings: Any) -> PreTrainedTokenizerFast:
    """One id per word, words being what stands between spaces; `settings` are transformers'."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return _fast(tokenizer, **settings)


def subword_tokenizer(texts: Iterable[str], size: int, *, split_digits: bool) -> PreTrainedTokenizerFast:
    """Byte-pair encoding (Sennrich et al. 2016) learnt from `texts`; ends of lines stand alone.

    Args:
        texts: what is to be written in few tokens.
        size: ids, special ones included.
        split_digits: digits stand alone, so that long numbers are copied digit by digit.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    parts = [pre_tokenizers.Metaspace(), pre_tokenizers.Split("\n", "isolated")]
    parts += [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)  # pyright: ignore
    tokenizer.train_from_iterator(texts, trainer)
    return _fast(tokenizer)


def _fast(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """As transformers takes it; every text ends in `</s>`, as T5's do.

    A pair has one in front as well, where classifiers of pairs collect what they found.
    """
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
        **settings,
    )
