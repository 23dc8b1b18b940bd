"""Small models of all examples, and running several jobs at the same time."""

import threading

import hunyuan_double
import opensora_double
import torch
import wan_double
from freeloc_adapters import examples
from marks import slow_unless

import freeloc
from freeloc.discovery import find_adapter

EXAMPLES = {
    example.label: example
    for example in (*examples.EXAMPLES, *opensora_double.EXAMPLES, *wan_double.EXAMPLES, *hunyuan_double.EXAMPLES)
}

QUICK = ("cogvideox-1.5", "hunyuan-video", "latte", "ltx-2", "open-sora-2", "wan", "wan-original")
"""Models that differ in their attention, text, rotary embedding and grid. The others are alike."""

LABELS = [slow_unless(label in QUICK, label) for label in sorted(EXAMPLES)]
"""To parametrize tests: the quick ones, and all others in the slow tests."""


class Subject:
    """A small model of an example, or another model with the same inputs, and how to run it."""

    def __init__(self, label, model=None):
        self.example = EXAMPLES[label]
        self.model = self.example.model() if model is None else model
        has_rope = find_adapter(self.model).rope_of(self.model) is not None
        self.profile = freeloc.default_profile(self.model, "vrpr+tsa" if has_rope else "tsa", 4)

    def run(self, frames, call=None):
        with torch.no_grad():
            return first(self.model if call is None else call, self.example.inputs(frames, 2, 3, 2))

    def patch(self, **options):
        return freeloc.patch(self.model, self.profile, **options)


def first(call, inputs):
    out = call(**inputs)
    while not isinstance(out, torch.Tensor):
        out = next(iter(out.values() if isinstance(out, dict) else out))
    return out


def error_of(found, expected):
    return float((found - expected).abs().max())


def in_threads(*jobs):
    """What the jobs return or raise, run at the same time, each with as many threads of PyTorch's own as here.

    Without being told, the first matrix products of a new thread are those of all cores, which round differently.
    """
    found, count = [None] * len(jobs), torch.get_num_threads()

    def do(index, job):
        torch.set_num_threads(count)
        try:
            found[index] = job()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=do, args=each) for each in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
