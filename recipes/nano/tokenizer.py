"""The nano model's tokenizer: byte-level BPE over 1,024 tokens, every digit a token of its own, the four tags one token each.

A token never spans a space and the word before it, so a prompt and a completion that begins with a space can be encoded apart.
Any text survives the round trip, because every byte is a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from recipes.nano.corpus import Mix, documents

VOCABULARY = 1024
EOS, PAD = "<|endoftext|>", "<|pad|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SPECIAL = (EOS, PAD, "<|im_start|>", "<|im_end|>")
_PIECE = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(seed: int = 0, count: int = 20_000) -> Any:
    """A transformers fast tokenizer, trained on `count` generated documents."""
    return fast(train_bpe((d.prompt + d.completion for d in documents(count, f"tokenizer/{seed}", Mix())), VOCABULARY))


def train_bpe(texts: Iterable[str], vocabulary: int) -> Any:
    """The tokenizer itself (tokenizers.Tokenizer), of at most `vocabulary` tokens, the tags among them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The tags become tokens of their own below; merges for their letters would be wasted.
    tokenizer.train_from_iterator((re.sub("|".join(TAGS), " ", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return tokenizer


def fast(tokenizer: Any) -> Any:
    """As transformers has it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )
