"""A language model so small that a test can make one: random weights, a real tokenizer and chat template."""

from pathlib import Path

import pytest

SENTENCES = [
    "The printer on the second floor does not print any more",
    "I cannot log in to my account since the password was changed",
    "Please send me the invoice of last month once again",
    "The new laptop loses its wireless connection every few minutes",
    "How do I set up the mail program on my telephone?",
    "billing high", "technical low", "account medium",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<user>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def make_checkpoint(folder: Path, *, seed: int = 0, sentences: list[str] = SENTENCES) -> Path:
    """Write a Llama of width 32 with 2 layers, vocabulary 320, as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<eos>", "<user>", "<answer>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # wide: so the answers differ from prompt to prompt
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to read; copy it before changing anything in it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with another tokenizer and other weights."""
    sentences = ["quantum lattices and graph neural networks", "fast approximate matrix sketching"]
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "other", seed=1, sentences=sentences)
