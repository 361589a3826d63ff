"""Base of all facts, and those that manifests of several kinds have."""

from typing import Any, Self

import pydantic

from latte.errors import UserError
from latte.storage.manifest import Manifest


class Facts(pydantic.BaseModel):
    """Base of all facts: frozen; unknown keys are passed over."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The facts in a manifest.

        Raises:
            UserError: one that the class cannot do without is missing, or has another type.
        """
        return cls._read(manifest, manifest.config, "config")

    @classmethod
    def _read(cls, manifest: Manifest, values: dict[str, Any], where: str) -> Self:
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, (where, *first["loc"])))
            raise UserError(
                f"{manifest.kind.replace('_', ' ')} {manifest.uri}: {key} of its manifest: {first['msg']}; "
                "it is of another version, make it again"
            ) from None

    def said(self) -> dict[str, Any]:
        """The facts that were given, as a manifest keeps them."""
        return self.model_dump(exclude_unset=True)


class Metrics(Facts):
    """Base of the facts that lie in a manifest's `metrics`."""

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The facts in the metrics of a manifest.

        Raises:
            UserError: as for the others.
        """
        return cls._read(manifest, manifest.metrics, "metrics")


class Notes(Facts):
    """Notes of any step: what it adapted, and what its reader should know."""

    notes: list[str] = []


class PlanMetrics(Metrics):
    """Size of a planned fan-out.

    Attributes:
        num_tasks: tasks that it is cut into.
        shards_to_encode: of an encoding, over all tasks.
        batches: of a sampling, over all tasks.
    """

    num_tasks: int
    shards_to_encode: int = 0
    batches: int = 0


class PromotedMetrics(Metrics):
    """The promoted checkpoint: its number, 0 before the first promotion, and the URI of its manifest, then ""."""

    number: int = 0
    checkpoint: str
