"""Graphs that ComfyUI's own loader and executor of nodes run."""

import asyncio
import json
import uuid
from typing import ClassVar

import torch

TEXT_TOKENS = 7


class _Server:
    """What the executor asks of ComfyUI's server when nobody watches."""

    client_id = None
    last_node_id = None

    def __init__(self):
        self.sockets_metadata = {}

    def send_sync(self, event, data, sid=None):
        pass


class TinyText:
    """Stands for text encoder and prompt: random values, another for each text."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {})}}

    def encode(self, text):
        seed = torch.Generator().manual_seed(sum(map(ord, text)))
        return ([[torch.randn(1, TEXT_TOKENS, 4096, generator=seed), {}]],)


class AnyType(str):
    """A type that may be connected to any input."""

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


class Do:
    """Calls a function of a test with a clone of the model. It may return another model, or any value."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "do"
    CATEGORY = "tests"
    functions: ClassVar[dict] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"what": ("STRING", {})}, "optional": {"model": ("MODEL",)}}

    def do(self, what, model=None):
        clone = model.clone() if model else None
        return (self.functions[what](clone) or clone,)


class Keep:
    """Keeps latents for a test."""

    RETURN_TYPES = ()
    FUNCTION = "keep"
    CATEGORY = "tests"
    OUTPUT_NODE = True
    kept: ClassVar[list] = []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def keep(self, latent):
        self.kept.append(latent["samples"].clone())
        return {}


class Graphs:
    """Runs prompts in the format of ComfyUI's API."""

    def __init__(self):
        import execution
        import nodes

        asyncio.run(nodes.init_builtin_extra_nodes())
        nodes.NODE_CLASS_MAPPINGS |= {"TinyText": TinyText, "Do": Do, "Keep": Keep}
        self.nodes = nodes.NODE_CLASS_MAPPINGS
        sizes = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        self._execution = execution
        self._executor = execution.PromptExecutor(_Server(), execution.CacheType.CLASSIC, sizes)

    def load(self, folder):
        """Load a folder of custom nodes as ComfyUI does."""
        import nodes

        return asyncio.run(nodes.load_custom_node(str(folder)))

    def do(self, function):
        """A name under which the node Do calls a function."""
        name = f"{function.__name__} {len(Do.functions)}"
        Do.functions[name] = function
        return name

    def sample(self, prompt):
        """The latent of the node Keep, and the report, empty if the graph has none."""
        self._executor.reset()
        Keep.kept.clear()
        shown = self.run(prompt)
        return Keep.kept[-1], shown.get("report", {"text": [""]})["text"][0]

    def run(self, prompt):
        """What output nodes showed, by node.

        Raises:
            GraphError: with what a user would read.
        """
        prompt = json.loads(json.dumps(prompt))
        name = str(uuid.uuid4())
        good, error, outputs, of_nodes = asyncio.run(self._execution.validate_prompt(name, prompt, None))
        if not good:
            details = [found["details"] for node in of_nodes.values() for found in node["errors"]]
            raise GraphError("invalid", details or error["message"], [])
        self._executor.execute(prompt, name, {}, outputs)
        if not self._executor.success:
            event, data = self._executor.status_messages[-1]
            raise GraphError(event, data.get("exception_message", ""), data["executed"])
        return self._executor.history_result["outputs"]


class GraphError(Exception):
    """A graph that ComfyUI refused or that failed.

    Attributes:
        event: ``"invalid"``, ``"execution_error"`` or ``"execution_interrupted"``.
        message: what the user reads.
        executed: the nodes that ran before.
    """

    def __init__(self, event, message, executed):
        super().__init__(f"{event}: {message}")
        self.event, self.message, self.executed = event, message, executed


def node(kind, **inputs):
    """A node in the format of ComfyUI's API."""
    return {"class_type": kind, "inputs": inputs}


def as_api(workflow, nodes):
    """A workflow as the page saves it, in the format of the API: as the page sends it.

    Args:
        workflow: nodes with positions, and links.
        nodes: node classes by name.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for each in workflow["nodes"]:
        sockets = {socket["name"]: socket["link"] for socket in each["inputs"]}
        types = nodes[each["type"]].INPUT_TYPES()
        values, inputs = list(each["widgets_values"]), {}
        for name, kind in {**types.get("required", {}), **types.get("optional", {})}.items():
            options = kind[1] if len(kind) > 1 else {}
            if name in sockets:
                inputs |= {name: links[sockets[name]]} if sockets[name] else {}
            else:
                inputs[name] = values.pop(0)
                if options.get("control_after_generate"):
                    values.pop(0)
        assert values == [], each["type"]
        prompt[str(each["id"])] = node(each["type"], **inputs)
    return prompt
