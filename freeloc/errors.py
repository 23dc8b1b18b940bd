"""What goes wrong, by who can mend it. Every message says what was expected, what was found and what to do."""


class FreelocError(ValueError):
    """Base of all errors that freeloc raises on purpose."""


class ProfileError(FreelocError):
    """A profile that is missing, malformed, or made for another model."""


class AdapterError(FreelocError):
    """A model that no adapter describes, or that its adapter describes wrongly."""


class RegistryError(FreelocError):
    """Plugins that contradict each other."""


class LayoutError(FreelocError):
    """An attention call that is not the one the adapter describes."""


class PatchError(FreelocError):
    """A model in the wrong state for patching."""


class ProbeError(FreelocError):
    """A probe that cannot be made or continued, or measurements that are malformed."""
