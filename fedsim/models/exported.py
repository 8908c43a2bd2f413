"""Applies a model that `fedsim export` wrote to new rows. This file needs PyTorch alone: it travels in the export.

saved = torch.load("model.pt", weights_only=True)
pathlib.Path("exported.py").write_text(saved["code"])

import exported
model = exported.load("model.pt")
model.predict([{"age": 39, "education": "Masters"}])
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LAYERS: dict[str, tuple[str, ...]] = {  # what PyTorch's layers are made of again
    "Linear": ("in_features", "out_features"),
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "AvgPool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "AdaptiveAvgPool2d": ("output_size",),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "BatchNorm1d": ("num_features", "eps", "momentum", "affine"),
    "BatchNorm2d": ("num_features", "eps", "momentum", "affine"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx"),
    "Flatten": ("start_dim", "end_dim"),
    "GELU": ("approximate",),
    "ELU": ("alpha",),
    "Softplus": ("beta", "threshold"),
    "LeakyReLU": ("negative_slope",),
    "Dropout": ("p",),
    **dict.fromkeys(("ReLU", "Tanh", "Sigmoid", "SiLU", "Identity"), ()),
}


def grouped(module: nn.Module) -> nn.Module:
    """The module with group normalisation of two groups (one for odd channels), with the same weights and biases, in
    place of batch normalisation; ``model.batch_norm: group`` asks for it."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        channels = module.num_features
        layer = nn.GroupNorm(2 if channels % 2 == 0 else 1, channels, module.eps, module.affine)
        if module.affine:
            layer.weight, layer.bias = module.weight, module.bias
        return layer.train(module.training)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
    for name, child in list(module.named_children()):
        module._modules[name] = grouped(child)
    return module


def converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with its numbers in this type; unlike with `to`, complex ones stay so, and shared buffers shared."""
    done: dict[int, tuple[Tensor, Tensor]] = {}

    def to(v: Tensor) -> Tensor:
        kind = dtype.to_complex() if v.is_complex() else dtype if v.is_floating_point() else v.dtype
        return done.setdefault(id(v), (v, v.to(kind)))[1]

    return module._apply(to)  # type: ignore[no-any-return, no-untyped-call]


def keeping(module: nn.Module, names: Iterable[str]) -> nn.Module:
    """The module with these buffers in its ``state_dict``, also where it was made to leave them out."""
    there = dict(module.named_modules(remove_duplicate=False))
    for where, _, name in (n.rpartition(".") for n in names):
        if where in there:  # else whoever loads the names says so
            there[where]._non_persistent_buffers_set.discard(name)
    return module


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Recurrent(nn.LSTM):
    """Long short-term memory, ``[b, positions, width]`` to the last layer's states ``[b, positions, hidden]``."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__(width, hidden, layers, batch_first=True)
        self.arguments = {"width": width, "hidden": hidden, "layers": layers}

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        states: Tensor = super().forward(x)[0]
        return states


class Last(nn.Module):
    """What there is at the last position: ``[b, positions, width]`` to ``[b, width]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


class Filters(nn.Module):
    """Convolutions over positions, each with its largest value: ``[b, positions, width]`` to ``[b, features]``."""

    def __init__(self, width: int, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.arguments = {"width": width, "channels": channels, "kernels": list(kernels)}
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, k) for k in kernels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(layer(x.mT)).amax(-1) for layer in self.convolutions], -1)


class Places(nn.Module):
    """Embeddings of tokens and of their positions, added up: ``[b, positions]`` to ``[b, positions, width]``."""

    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.arguments = {"vocabulary": vocabulary, "context": context, "width": width}
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        places: Tensor = self.tokens(x) + self.positions(torch.arange(x.shape[-1], device=x.device))
        return places


class Block(nn.Module):
    """A transformer's block with the normalisation first: each position sees itself and those before it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.arguments = {"width": width, "heads": heads, "hidden": hidden, "dropout": dropout}
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attended, self.projected = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.projected(self.attention(self.first(x))))
        y: Tensor = x + self.drop(self.narrow(torch.nn.functional.gelu(self.wide(self.second(x)))))
        return y

    def attention(self, x: Tensor) -> Tensor:
        b, positions, width = x.shape
        q, k, v = self.attended(x).view(b, positions, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        later = torch.ones(positions, positions, dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.mT / math.sqrt(width // self.heads)).masked_fill(later, -math.inf)
        seen: Tensor = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, positions, width)
        return seen


OWN: dict[str, type[nn.Module]] = {c.__name__: c for c in (Recurrent, Last, Filters, Places, Block)}


class Encoder(nn.Module):
    """From a row as it is in the file, as numbers ``[b, ...]``, to what the model takes.

    Of a table the numbers are one per column: NaN where a value is missing, and for a categorical column the number of
    the category (-1 for one that training did not know).
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        super().__init__()
        data = about["data"]["input"]
        self.columns = [dict(c) for c in data.get("columns") or ()]
        self.divide = None if self.columns else data.get("divide")
        self.kind: torch.dtype = getattr(torch, about["model"]["takes"])
        self.real = data["type"] != "int64"
        shift, scale = data.get("shift"), data.get("scale")
        if self.columns:
            shift = [c.get("shift", 0.0) for c in self.columns]
            scale = [c.get("scale", 1.0) for c in self.columns]
        for c in self.columns:
            if "categories" in c and "fill" in c:
                c["fill"] = c["categories"].index(c["fill"])
        self.shift: Tensor | None
        self.scale: Tensor | None
        for name, values in (("shift", shift), ("scale", scale)):
            self.register_buffer(name, None if values is None else torch.tensor(values, dtype=torch.float32), False)

    def forward(self, rows: Tensor) -> Tensor:
        if not self.real:
            return rows.to(self.kind)
        x = rows.to(torch.float32)
        fills = [float(c.get("fill", math.nan)) for c in self.columns]
        if not all(math.isnan(f) for f in fills):
            x = torch.where(torch.isnan(x), torch.tensor(fills, dtype=torch.float32), x)
        if self.divide is not None:
            x = x / self.divide
        if self.shift is not None and self.scale is not None:
            x = (x - self.shift) / self.scale
        if any("categories" in c for c in self.columns):
            parts = []
            for j, c in enumerate(self.columns):
                if "categories" in c:
                    parts.append((x[:, j : j + 1] == torch.arange(len(c["categories"]))).to(torch.float32))
                else:
                    parts.append(x[:, j : j + 1])
            x = torch.cat(parts, dim=1)
        return x.to(self.kind)


class Exported:
    """A model with all that is needed to apply it to new rows: `about`, how it is made and what its inputs and outputs
    are, and `module`, from encoded inputs to outputs; of a ``.pt2`` file from rows to outputs."""

    def __init__(self, about: Mapping[str, Any], module: Any, whole: bool = False) -> None:
        self.about, self.module, self.whole = about, module, whole
        self.encoder = Encoder(about)
        target = about["data"]["target"]
        self.classes: list[str] | None = target.get("classes")
        self.labels: list[Any] | None = target.get("labels")
        self.multiply = float(target.get("multiply", 1.0))

    def numbers(self, rows: Any) -> Tensor:
        """Rows as numbers: texts, mappings from column names to values as in the file, or anything like an array.

        ValueError where a column is missing or has a value that training could not have had.
        """
        if isinstance(rows, Tensor):
            return rows
        if isinstance(rows, Mapping | str):
            rows = [rows]
        if len(rows) and isinstance(rows[0], str):
            return torch.tensor([self.ids(text) for text in rows])
        if not len(rows) or not isinstance(rows[0], Mapping):
            return torch.as_tensor(rows)
        return torch.tensor([[self._number(c, row) for c in self.encoder.columns] for row in rows], dtype=torch.float32)

    def ids(self, text: str) -> list[int]:
        """A text as the token ids ``[context]`` that training would have made of it: of a longer one its last ones, or
        its first ones where it gets a label. ValueError where training had no texts, or a tokenizer of one's own.
        """
        how = self.about["data"]["input"].get("tokenizer")
        if how is None or how["name"] not in ("char", "byte", "word"):
            raise ValueError("texts need the tokenizer of the training data; give token ids [b, positions] instead")
        place = {token: i for i, token in enumerate(how["tokens"])}
        parts = list(text) if how["name"] == "char" else re.findall(r"\w+|[^\w\s]", text.lower())
        ids = list(text.encode()) if how["name"] == "byte" else [place.get(p, how["unknown"]) for p in parts]
        context = int(how["context"])
        ids = ids[:context] if how["predict"] == "label" else ids[-context:]
        padding = [how["padding"]] * (context - len(ids))
        return ids + padding if how["predict"] == "every" else padding + ids

    def _number(self, column: Mapping[str, Any], row: Mapping[str, Any]) -> float:
        name = column["name"]
        if name not in row:
            needed = ", ".join(c["name"] for c in self.encoder.columns)
            raise ValueError(f"a row lacks the column {name!r}; needed: {needed}")
        value = row[name]
        if value is None or value == "" or value != value:
            if "fill" not in column:
                raise ValueError(f"column {name!r} has no value, and training met no missing value there")
            return math.nan
        if "categories" not in column:
            return float(value)
        return float(column["categories"].index(str(value))) if str(value) in column["categories"] else -1.0

    @torch.no_grad()
    def outputs(self, rows: Any) -> Tensor:
        """The model's outputs ``[b, k]``."""
        numbers, wanted = self.numbers(rows), list(self.about["model"]["input_shape"])
        if self.encoder.real and not self.encoder.columns and list(numbers.shape[1:]) != wanted:
            raise ValueError(f"found rows of shape {list(numbers.shape[1:])}, needed: a list of rows of shape {wanted}")
        if self.whole:
            result = self.module(numbers.to(torch.int64 if not self.encoder.real else torch.float32))
        else:
            result = self.module(self.encoder(numbers))
        if not isinstance(result, Tensor):  # classifiers of Hugging Face return objects
            result = result["logits"] if isinstance(result, Mapping) else result.logits
        return result  # type: ignore[no-any-return]

    def predict(self, rows: Any) -> list[Any]:
        """The label of each row as the training file has it; in regression its target, or targets. Where every token
        has a next one, a list per row that ends with what follows its last token."""
        out = self.outputs(rows)
        if self.labels is None:
            values = (out * self.multiply).tolist()
            return [v[0] for v in values] if out.shape[-1] == 1 else values
        chosen = (out[:, 0] > 0).long() if out.shape[-1] == 1 else out.argmax(-1)
        if chosen.dim() > 1:
            padding = (self.about["data"]["input"].get("tokenizer") or {}).get("padding")
            here = torch.ones_like(chosen) if padding is None else self.numbers(rows) != padding
            return [[self.labels[i] for i in row[kept].tolist()] for row, kept in zip(chosen, here.bool(), strict=True)]
        return [self.labels[i] for i in chosen.tolist()]

    def probabilities(self, rows: Any) -> Tensor:
        """``[b, classes]``, or at every position: the softmax of the outputs, for one output (logistic) of 0 and it."""
        out = self.outputs(rows)
        return torch.softmax(torch.cat([torch.zeros_like(out), out], 1) if out.shape[-1] == 1 else out, -1)


def load(file: str | Path) -> Exported:
    """What `fedsim export` wrote to a ``.pt``, ``.safetensors`` or ``.pt2`` file."""
    path = Path(file)
    if path.suffix == ".pt2":
        extra = {"about.json": ""}
        program = torch.export.load(str(path), extra_files=extra)
        return Exported(json.loads(extra["about.json"]), program.module(), whole=True)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    else:
        saved = torch.load(path, weights_only=True)
        about, state = saved["about"], saved["state_dict"]
    module = keeping(build(about["model"]), state)
    module.load_state_dict(state)
    module.eval()
    return Exported(about, module)


def build(model: Mapping[str, Any]) -> nn.Module:
    """The module that the export describes, with values yet to be loaded; ImportError without somebody's own class."""
    dtype = getattr(torch, model["dtype"])
    if model["layers"] is not None:
        return converted(assemble(model["layers"]), dtype)
    made = _made(model)
    return converted(grouped(made) if model.get("batch_norm") == "group" else made, dtype)


def _made(model: Mapping[str, Any]) -> nn.Module:
    where, _, name = str(model["name"]).partition(":")
    try:
        factory = getattr(importlib.import_module(where), name)
    except Exception as error:
        raise ImportError(
            f"this model is made by '{model['name']}', which cannot be imported here ({error}); put its file on "
            "PYTHONPATH, or export the run to a .pt2 file, which needs no code"
        ) from error
    known = {"input_shape": tuple(model["input_shape"]), "num_outputs": model["num_outputs"]}
    if hasattr(factory, "build"):
        made: nn.Module = factory(**model["keys"]).build(*known.values())
        return made
    known["vocabulary"] = model.get("vocabulary")
    try:
        offered = inspect.signature(factory).parameters
    except ValueError:
        offered = {}  # type: ignore[assignment]
    own = {k: v for k, v in known.items() if k in offered and k not in model["keys"]}
    return factory(**own, **model["keys"])  # type: ignore[no-any-return]


def assemble(spec: Sequence[Any]) -> nn.Module:
    """The module of a description: ``[kind, arguments or parts]``."""
    kind, inner = spec
    if kind == "Sequential":
        return nn.Sequential(*(assemble(s) for s in inner))
    if kind == "Residual":
        return Residual(*(assemble(s) for s in inner))
    if kind in OWN:
        return OWN[kind](**inner)
    layer: nn.Module = getattr(nn, kind)(**{k: tuple(v) if isinstance(v, list) else v for k, v in inner.items()})
    return layer


def describe(module: nn.Module) -> list[Any] | None:
    """A description of a module of PyTorch's layers in JSON's types, from which `assemble` makes it again.

    None where it has other parts, hooks or layers that are used twice.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    kind = type(module).__name__
    if type(module) is nn.Sequential:
        if [name for name, _ in module.named_children()] != [str(i) for i in range(len(module))]:
            return None
        parts = [describe(child) for child in module]
        return None if None in parts else ["Sequential", parts]
    if kind == "BasicBlock" and type(module).__module__.startswith("fedsim."):
        parts = [describe(module.get_submodule(name)) for name in ("body", "shortcut")]
        return None if None in parts else ["Residual", parts]
    if kind in OWN and type(module).__module__.startswith("fedsim."):
        return [kind, dict(getattr(module, "arguments", {}))]
    if kind not in LAYERS or type(module) is not getattr(nn, kind):
        return None
    arguments: dict[str, Any] = {name: getattr(module, name) for name in LAYERS[kind]}
    if kind in ("Linear", "Conv2d", "LayerNorm"):
        arguments["bias"] = module.bias is not None
    if kind == "Conv2d" and module.padding_mode != "zeros":
        return None
    return [kind, {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}]
