"""Record what transformers computes for a tiny, randomly initialised model of every family.

Writes, for each family, a Hugging Face folder ``families/NAME`` (config.json, model.safetensors,
tokenizer.json) with the values of eager attention over some texts, as ``golden.npz`` and
``golden.json``. A tokenizer that is there already is kept. Use: make goldens [NAMES="NAME ..."]
"""

import argparse
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

SEED = 7
CORPUS = [
    "The animal did not cross the street because it was too tired.",
    "Attention weights say which inputs mattered, and where they were.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "注意力是你所需要的一切。",
]
TEXTS: list[tuple[str, str | None]] = [
    ("cat", None),
    (CORPUS[0], None),
    ("Why did it not cross?", "It was tired."),
    (f"{CORPUS[2]} {CORPUS[3]}", None),
]
WIDTH, INNER, LAYERS, HEADS = 24, 40, 3, 3
LONGEST = 96


def word_piece() -> Tokenizer:
    """BERT's tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def byte_level() -> Tokenizer:
    """RoBERTa's tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends)
    return tokenizer


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's: as RoBERTa's, without special tokens around a text."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def unigram() -> Tokenizer:
    """XLM-R's tokenizer."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    return tokenizer


BERT_FIELDS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
FAMILIES: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "bert": (word_piece, {**BERT_FIELDS, "max_position_embeddings": LONGEST}),
    "roberta": (
        byte_level,
        {**BERT_FIELDS, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1},
    ),
    "xlm-roberta": (
        unigram,
        {**BERT_FIELDS, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1},
    ),
    "distilbert": (
        word_piece,
        {
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INNER,
            "max_position_embeddings": LONGEST,
        },
    ),
    "gpt2": (
        gpt2_tokenizer,
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LONGEST},
    ),
}
LLAMA_FIELDS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": INNER,
    "max_position_embeddings": LONGEST,
}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
FAMILIES |= {
    "llama": (gpt2_tokenizer, LLAMA_FIELDS),
    "llama-rope3": (gpt2_tokenizer, {**LLAMA_FIELDS, "rope_parameters": ROPE_LLAMA3}),
    "mistral": (gpt2_tokenizer, {**LLAMA_FIELDS, "sliding_window": 5}),
    "qwen2": (
        gpt2_tokenizer,
        {
            **LLAMA_FIELDS,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
    ),
    "qwen3": (gpt2_tokenizer, {**LLAMA_FIELDS, "head_dim": 10}),
    # Its second and third layer see 3 tokens on each side, its first and fourth all.
    "modernbert": (
        word_piece,
        {
            **BERT_FIELDS,
            "num_hidden_layers": 4,
            "max_position_embeddings": LONGEST,
            "local_attention": 6,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
    ),
}
MODERNBERT_BIASES = {
    "num_hidden_layers": 2,
    "local_attention": 7,  # an odd window, as 6
    "attention_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
}
FAMILIES["modernbert-biases"] = (word_piece, {**FAMILIES["modernbert"][1], **MODERNBERT_BIASES})


def _model_type(name: str) -> str:
    """What transformers calls a model: more than one model of a type is recorded."""
    return name.partition("-rope")[0].removesuffix("-biases")


def make(name: str, tokenizer: Tokenizer, fields: dict[str, Any]) -> PreTrainedModel:
    """A model with weights large enough for its attention to be uneven."""
    vocabulary = tokenizer.get_vocab_size()
    pad = tokenizer.token_to_id("<pad>")
    fields = {**fields, "vocab_size": vocabulary, "pad_token_id": 0 if pad is None else pad}
    config = AutoConfig.for_model(_model_type(name), **fields)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.ndim > 1 else 0.1))
    evaluated: PreTrainedModel = model
    return evaluated


def record(name: str, folder: Path) -> None:
    """One family: its folder, anew."""
    make_tokenizer, fields = FAMILIES[name]
    torch.manual_seed(SEED)
    # Trained once: of pieces that are as good as each other the trainers pick any.
    trained = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(trained)) if trained.exists() else make_tokenizer()
    model = make(name, tokenizer, fields)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, safe_serialization=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors", "tokenizer.json"):
            file.unlink()
    cases, arrays = [], {}
    for index, (text, pair) in enumerate(TEXTS):
        encoding = tokenizer.encode(text, pair)
        given = {"input_ids": torch.tensor([encoding.ids])}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if getattr(model.config, "type_vocab_size", 0) > 1:  # it takes whose of a pair a token is
            given["token_type_ids"] = torch.tensor([encoding.type_ids])
        with torch.no_grad():
            found = model(**given, output_attentions=True)
        arrays[f"{index}.output"] = found.last_hidden_state[0].numpy()
        arrays[f"{index}.weights"] = torch.cat(found.attentions).numpy()
        cases.append({"text": text, "text_pair": pair, "token_ids": encoding.ids})
    np.savez_compressed(folder / "golden.npz", allow_pickle=False, **arrays)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    text = json.dumps({"versions": versions, "cases": cases}, indent=1)
    (folder / "golden.json").write_text(text + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(FAMILIES), metavar="NAME")
    for name in parser.parse_args().names:
        record(name, Path(__file__).with_name("families") / name)


if __name__ == "__main__":
    main()
