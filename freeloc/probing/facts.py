"""The header of a file of measurements, and the check that it fits the file's tensors."""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from freeloc.errors import FreelocError, ProbeError
from freeloc.probing.table import Label, Table
from freeloc.profile.schema import Profile
from freeloc.untrusted import brief, check_version, parsed, printable, problems

SCHEMA_VERSION = 1

LARGEST_HEADER = 10_000_000
"""Largest length of a header, in characters."""

TABLE_NAME = re.compile(r"[a-z0-9-]+\.[A-Za-z0-9 _-]+")
"""``depth.measure``, with characters that are safe in a file name."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class ProbeFacts(BaseModel):
    """The origin of measurements: model, run, settings and versions.

    Attributes:
        profile: the profile that the model was probed with: its sizes, trained length, and settings of methods.
        fingerprint: fingerprint of the weights; see `freeloc.probing.subject.fingerprint`.
        latent_frames: lengths of the generated videos or of the clips.
        prompts: the prompts that `run` was called with.
        seed: random seed of freeloc's own samples: sampled tokens, noise of clips.
        settings: settings by name of the depth.
        versions: versions of the libraries that affect the measurements.
        command: the command that started the probe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")

    profile: Profile
    fingerprint: str
    latent_frames: list[int]
    prompts: list[str]
    seed: int
    settings: dict[str, Any]
    versions: dict[str, str]
    command: str


class Header(BaseModel):
    """The header of a file of measurements: everything beside its tensors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    schema_version: int
    facts: ProbeFacts
    axes: dict[str, dict[str, list[Label]]]


def read_header(text: str, where: str) -> Header:
    """Read a header.

    Raises:
        ProbeError: if the text is not a header.
    """
    refused = f"{where} holds no measurements of freeloc"
    if len(text) > LARGEST_HEADER:
        raise ProbeError(f"{refused}: expected metadata of at most {LARGEST_HEADER} characters, found {len(text)}")
    try:
        content = parsed(text)
        if not isinstance(content, dict):
            raise ProbeError(f"{refused}: expected metadata that is a JSON object, found {brief(content)}")
        json.dumps(
            content, ensure_ascii=False
        ).encode()  # fails for half a surrogate pair, which cannot be written again
        check_version(content.get("schema_version"), SCHEMA_VERSION, where, "measurements of ")
        header = Header.model_validate(content)
        header.model_dump_json()  # fails if it is nested too deeply to be written again
    except ValidationError as error:
        raise ProbeError(f"{refused}:\n{problems(error)}") from None
    except FreelocError as error:
        raise ProbeError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{refused}: its metadata is not JSON: {printable(str(error)[:300])}") from None
    return header


def tables_of(tensors: Mapping[str, Tensor], header: Header) -> dict[str, Table]:
    """The tensors with the axes that the header gives them.

    Raises:
        ProbeError: if the axes do not fit the tensors, or the model.
    """
    if header.axes.keys() != tensors.keys():
        raise ProbeError(f"expected the tensors {brief(sorted(header.axes))}, found {brief(sorted(tensors))}")
    if other := [name for name, tensor in tensors.items() if tensor.dtype not in FLOATS]:
        raise ProbeError(f"expected tensors of floating-point numbers, found {tensors[other[0]].dtype}")
    if other := [name for name in tensors if not TABLE_NAME.fullmatch(name)]:
        raise ProbeError(f"expected tables with names such as 'local.logits', found {brief(other[0])}")
    tables = {name: Table(tensors[name], header.axes[name]) for name in header.axes}
    model = header.facts.profile.model
    for axis, size in (("layers", model.layers), ("heads", model.heads)):
        for name, table in tables.items():
            labels = table.axes.get(axis)
            if labels is not None and labels != list(range(size)):
                raise ProbeError(f"{brief(name)}: expected {axis} 0 to {size - 1} in order, found {brief(labels)}")
    return tables
