"""The errors of freeloc, by what has to be fixed. Messages say what was expected, what was found and what to do."""


class FreelocError(ValueError):
    """Base class of all errors that freeloc raises on purpose."""


class ProfileError(FreelocError):
    """A profile is missing, malformed, or made for another model."""


class AdapterError(FreelocError):
    """No adapter describes the model, or its adapter describes it wrongly."""


class RegistryError(FreelocError):
    """A name is unknown, or two plugins use the same one."""


class LayoutError(FreelocError):
    """An attention call does not match what the adapter describes."""


class PatchError(FreelocError):
    """The model is in the wrong state for patching."""


class ProbeError(FreelocError):
    """A probe cannot start or continue, or measurements are malformed."""
