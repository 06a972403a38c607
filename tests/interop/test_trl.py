"""TRL reads the dataset, renders it with its own chat templates, and trains on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.filterwarnings("default")  # what these packages warn each other of is not ours

Json = Any
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Those of models that were taught to call tools; with the others TRL renders no call at all.
CALLING = (
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "qwen3_6",
    "llama3_1",
    "gptoss",
    "gemma4",
    "glm4moe",
    "nemotron_3_nano",
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: nothing to download."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    model = Tokenizer(models.BPE(vocab={**vocabulary, "<eos>": len(letters)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<eos>", bos_token="<eos>")
    wrapped.chat_template = (TEMPLATES / "qwen3_training.jinja").read_text()
    return wrapped


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def load(dataset: Path, config: str, split: str = "test") -> Dataset:
    return load_dataset(str(dataset), config, split=split)


def lines(dataset: Path, config: str) -> Iterator[Json]:
    path = dataset / "test.jsonl" if config == "default" else dataset / config / "test.jsonl"
    return map(json.loads, path.read_bytes().splitlines())


@pytest.mark.parametrize("config", ["default", "openai", "trl", "prompt_completion"])
def test_what_is_loaded_is_what_was_written(dataset: Path, config: str) -> None:
    loaded = load(dataset, config)
    assert len(loaded)
    for row, line in zip(loaded, lines(dataset, config), strict=True):
        row.pop("timestamp", None)  # comes back as a datetime
        line.pop("timestamp", None)
        assert row == line


@pytest.mark.parametrize(("config", "expected"), [("default", True), ("trl", True), ("prompt_completion", False)])
def test_trl_knows_which_format_is_conversational(dataset: Path, config: str, expected: bool) -> None:
    assert {trl.data_utils.is_conversational(row) for row in load(dataset, config)} == {expected}


@pytest.mark.parametrize("name", CALLING)
def test_trls_chat_templates_show_the_tools_and_end_with_the_call(
    dataset: Path, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    template = (TEMPLATES / f"{name}.jinja").read_text()
    for row, whole in zip(load(dataset, "trl"), load(dataset, "default"), strict=True):
        pair = {"prompt": row["prompt"], "completion": row["completion"]}
        rendered = trl.apply_chat_template(pair, tokenizer, tools=row["tools"], chat_template=template)
        text = trl.apply_chat_template(
            {"messages": whole["messages"]}, tokenizer, tools=whole["tools"], chat_template=template
        )
        called = row["completion"][0]["tool_calls"][0]["function"]
        assert rendered["prompt"] + rendered["completion"] == text["text"]
        assert called["name"] in rendered["completion"]
        assert str(called["arguments"]["limit"]) in rendered["completion"]
        assert all(tool["function"]["name"] in rendered["prompt"] for tool in row["tools"])


@pytest.mark.parametrize("config", ["trl", "default", "prompt_completion"])
def test_trls_trainer_takes_a_step_on_it(
    dataset: Path, tokenizer: PreTrainedTokenizerFast, config: str, tmp_path: Path
) -> None:
    tiny = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8192,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=LlamaForCausalLM(tiny),
        processing_class=tokenizer,
        train_dataset=load(dataset, config).select(range(4)),
        args=trl.SFTConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=1, max_length=None, report_to=[],
            use_cpu=True, save_strategy="no", bf16=False, activation_checkpointing=False,
        ),
    )  # fmt: skip
    row = trainer.train_dataset[0]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    text = tokenizer.decode(learned)
    (line, *_) = lines(dataset, "default")
    assert line["tool_name"] in text
    if config != "default":  # the loss is on the completion alone
        assert '"parameters"' not in text
        assert len(learned) < len(row["input_ids"])
    assert trainer.train().training_loss > 0
