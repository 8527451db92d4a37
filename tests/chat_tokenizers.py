"""Tokenizers with chat templates."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["<s>", "</s>", "<pad>", *"abcde", "user", "bot", "<turn>"]
BOS, END, USER, BOT, TURN = 0, 1, 8, 9, 10
TEMPLATE = (
    "<s>{% for message in messages %} {{ {'user': 'user', 'assistant': 'bot'}[message['role']] }} "
    "{{ message['content'] }} <turn> {% endfor %}{% if add_generation_prompt %}bot {% endif %}"
)


def tokenizer_of(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Words a..e have the ids 3..7; a plain prompt gets `<s>` as well."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("<s>", "</s>", "<pad>", "<turn>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", bos_token="<s>", chat_template=template
    )
