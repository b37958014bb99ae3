"""MiniLM with a logistic probe, classifying the sentiment of sentences.

The encoder is frozen for the probe only: fine-tuning a candidate trains everything. Costs are those of one sentence of
``length`` tokens; attention's own products (softmax(QK) V) have no weights and are not counted. The word embedding holds
half of the parameters. Without training, fitting factors layer by layer decides how small it can get: see docs/results/rules.md."""

from pathlib import Path
from typing import Annotated, Literal

from ranksearch.evaluation import Fidelity
from ranksearch.home import home
from ranksearch.study import Study
from ranksearch.tasks.text import SentenceClassifier, fit_probe, pretrained_encoder, sentences
from search_spaces.bert import space


def study(
    *,
    data: Annotated[Path, "folder with parquet files of columns text, label, split"],
    encoder: Annotated[Path, "folder of the model in the layout of transformers, such as all-MiniLM-L6-v2"],
    source: Annotated[str, "name of the parquet file in the folder, without .parquet"] = "tweets",
    length: Annotated[int, "tokens per sentence; longer ones are cut"] = 48,
    epochs: Annotated[float, "epochs of fine-tuning for each candidate"] = 0.0,
    training: Annotated[Literal["plain", "recovery"], "of candidates: as the task does, or with a rate per factor and a teacher"] = "plain",
    reconstruction: Annotated[int, "batches that factors are fitted to before, layer by layer; 0: none"] = 8,
    teach: Annotated[int, "steps in which a candidate as a whole learns the dense network's answers after that; 0: none"] = 0,
    learning_rate: Annotated[float, "peak learning rate of fine-tuning; at 0.01 an encoder forgets what it knows"] = 0.001,
    metric: Annotated[Literal["weight", "activation", "fisher"], "what factors are made for and errors are taken in"] = "fisher",
    seed: Annotated[int, "of the search and every evaluation"] = 0,
) -> Study:
    """Compress a sentence encoder with a logistic probe."""
    network, tokenizer = pretrained_encoder(encoder)
    task = sentences(data / f"{source}.parquet", tokenizer, length=length, learning_rate=learning_rate)
    model = SentenceClassifier(network, task.classes).eval()
    fit_probe(model, task, cache=home() / "cache")
    spec = space(tables=True, head=True, round_to=1).replace(metric=metric, calibration=32)  # every layer, as in docs/results/rules.md
    fidelity = Fidelity(epochs=epochs, recalibration=0, reconstruction=reconstruction, distill=teach, training=training)
    return Study(f"minilm_{source}", model=model, task=task, space=spec, fidelity=fidelity, seed=seed)
