"""From a question to the token ids of its prompt: R1-Zero's template for base models, the tokenizer's own chat template for others.

The ids made here are the only ones in a run: the sampler gets them and the learner trains on them; nothing is re-tokenised.
"""

from __future__ import annotations

from typing import Any

# The template of DeepSeek-R1-Zero (arXiv 2501.12948, table 1); "prompt" there is {question} here.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first "
    "thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and "
    "answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>. User: {question}. Assistant:"
)

# What a chat model is told, so that the same rewards can read it.
CHAT_SYSTEM = (
    "Think about the problem between <think> and </think>,"
    " then give the final answer, and only it, between <answer> and </answer>."
)


def render(question: str, template: str, tokenizer: Any) -> tuple[int, ...]:
    """The prompt's token ids under `template`: "r1_zero" or "chat".

    With "r1_zero" the tokenizer adds what it adds to any text (a BOS where it has one); with "chat" the template brings its own.
    """
    if template == "r1_zero":
        # A question that ends in "?" or "." brings its own stop.
        text = R1_ZERO.format(question=question)
        if question.rstrip()[-1:] in ".?!":
            text = R1_ZERO.replace("{question}.", "{question}").format(question=question.rstrip())
        return tuple(tokenizer(text)["input_ids"])
    if template == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                'prompt.template = "chat", but this tokenizer has no chat template; use prompt.template = "r1_zero"'
            )
        messages = [{"role": "system", "content": CHAT_SYSTEM}, {"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        return tuple(ids)
    raise ValueError(f'prompt.template = "{template}" is not known; use "r1_zero" (base models) or "chat"')
