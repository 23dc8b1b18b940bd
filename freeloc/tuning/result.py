"""Tuned: the result of a tuning: a profile, the measurements behind it, and a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from typing_extensions import Self

from freeloc.errors import FreelocError, ProbeError
from freeloc.files import content_of, replacing
from freeloc.pictures import write
from freeloc.probing import Sensitivity
from freeloc.probing.facts import ProbeFacts
from freeloc.probing.origin import command_line, versions_used
from freeloc.profile.files import digest, load_profile
from freeloc.profile.schema import Evidence, Profile
from freeloc.tuning.candidates import as_data, profile_of
from freeloc.tuning.evidence import tables_of
from freeloc.tuning.pictures import pictures_of
from freeloc.tuning.report import report_of
from freeloc.tuning.session import Session
from freeloc.untrusted import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROFILE, MEASUREMENTS, REPORT = "profile.json", "profile.safetensors", "report.md"
"""The files of a result."""

LARGEST_REPORT = 10_000_000
"""Largest size of a report, in bytes."""

RULE = "tune: lowest denoising loss on one half of the clips; kept if it wins on the other half and in sampled videos"


@dataclass(frozen=True)
class Tuned:
    """The result of `freeloc.tune`.

    Printing it shows what was found, and how sure that is.

    Attributes:
        profile: the profile, for ``freeloc.patch(model, profile=...)``.
        measurements: the measurements behind it.
        report: what was found, in Markdown; it shows pictures that `save` writes beside it.
        strips: frames of the sampled videos, (height, width, 3) uint8, by setting.
    """

    profile: Profile
    measurements: Sensitivity
    report: str
    strips: dict[str, Tensor]

    @classmethod
    def of(cls, session: Session) -> Self:
        """The result of a finished session."""
        model = session.runner.profile.model
        counts = f"{len(session.runner.clips)} {'samples of the model itself' if session.is_own else 'clips'}"
        lengths = " and ".join(map(str, session.frames))
        notes = f"Tuned on {counts}, {lengths} latent frames, {session.work.clock.spent() / 60:.0f} minutes."
        facts_profile = profile_of(
            session.runner.profile,
            session.chosen,
            provenance={
                "kind": "probed",
                "source": command_line(),
                "notes": f"{notes} {' '.join(session.notes)}".strip(),
            },
        )
        facts = ProbeFacts(
            profile=facts_profile,
            fingerprint=session.recorded["model"],
            latent_frames=session.frames,
            prompts=session.recorded["prompts"],
            seed=session.runner.seed,
            settings={"tune": session.recorded | {"chosen": as_data(session.chosen), "model": model.name}},
            versions=versions_used(),
            command=command_line(),
        )
        measured = Sensitivity(tables_of(session), facts)
        return cls(facts_profile, measured, report_of(session, facts), dict(session.shipping.strips))

    def __str__(self) -> str:
        return self.report.partition("\n## ")[0].strip()

    def save(self, folder: str | Path) -> None:
        """Write ``profile.json``, ``profile.safetensors``, ``report.md`` and, with matplotlib, its pictures.

        Raises:
            ProbeError: if they cannot be written.
        """
        folder = Path(folder)
        self.measurements.save(folder / MEASUREMENTS)
        evidence = Evidence(sha256=digest(folder / MEASUREMENTS), rule=RULE)
        self.profile.model_copy(update={"evidence": evidence}).save(folder / PROFILE)
        pictures = self.pictures()
        shown = [line for line in self.report.splitlines(keepends=True) if pictures or not line.startswith("![")]
        try:
            with replacing(folder / REPORT) as part:
                part.write_text("".join(shown), encoding="utf-8")
        except OSError as error:
            raise ProbeError(f"cannot write {folder / REPORT}: {error}") from error
        for name, figure in pictures.items():
            write(figure, folder / f"{name}.png")

    def pictures(self) -> "dict[str, Figure]":
        """The pictures of the report by name; none if matplotlib is not installed."""
        try:
            return pictures_of(self.profile, self.measurements, self.strips)
        except FreelocError as error:
            if isinstance(error.__cause__, ImportError):
                return {}
            raise

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ProfileError, ProbeError: if it is not there, or cannot be read.
        """
        folder = Path(folder)
        profile, measured = load_profile(folder / PROFILE), Sensitivity.load(folder / MEASUREMENTS)
        try:
            report = content_of(folder / REPORT, LARGEST_REPORT).decode("utf-8")
        except (FreelocError, UnicodeDecodeError) as error:
            raise ProbeError(f"cannot read {printable(str(folder / REPORT))}: {error}") from error
        return cls(profile, measured, report, {})
