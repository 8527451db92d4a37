"""Fast tokenizers for generated texts: one token a word, or byte-pair subwords trained on the texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gkd_rl.data.embedded.news import vocabulary

SPECIAL = ("<pad>", "</s>", "<unk>")  # ids as in T5: padding 0, end of sequence 1, unknown 2


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the generated news: one token for each of its words."""
    return word_tokenizer(vocabulary())


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """As `build_tokenizer`, for classifiers of pairs: it also returns the segment of each token (token_type_ids)."""
    return word_tokenizer(vocabulary(), model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def word_tokenizer(words: Iterable[str], **settings: Any) -> PreTrainedTokenizerFast:
    """One token a word; words are separated by white space.

    Args:
        words: the vocabulary, without the special tokens.
        **settings: further arguments of PreTrainedTokenizerFast.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return _fast(tokenizer, **settings)


def subword_tokenizer(texts: Iterable[str], size: int, *, split_digits: bool) -> PreTrainedTokenizerFast:
    """Byte-pair encoding (Sennrich et al. 2016) trained on `texts`; every line break is a token of its own.

    Args:
        texts: the training texts.
        size: size of the vocabulary, special tokens included.
        split_digits: every digit is a token of its own, so that long numbers are copied digit by digit.
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
    """The tokenizer for transformers. Every text ends in `</s>`, as in T5.

    A pair also starts with `</s>`, whose state a classifier of pairs uses.
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
