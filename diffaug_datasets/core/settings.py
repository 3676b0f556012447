"""Settings that may grow: a key that came later leaves every plan id as it was, until somebody sets it.

A plan id is a digest of settings with their defaults filled in, so a new key would move all of them. A field that is
marked `Annotated[..., Later()]` is left out of every dump while it has its default value.

Settings say which of their keys nothing reads under the others (`idle`); a new plan that sets one of those is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


@dataclass(frozen=True)
class Later:
    """Marks a field of `Settings` that plans were made without; it must have a default."""


class Settings(BaseModel):
    """A strict, frozen model whose dumps leave out `Later` fields that have their default values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def idle(self) -> dict[str, str]:
        """Keys that nothing reads under these settings, with the setting that leaves them unread."""
        return {}

    def set_in_vain(self) -> Iterator[tuple[str, object, str]]:
        """(dotted key, value, why nothing reads it) of idle keys, here and within, that are not at their defaults."""
        idle = self.idle()
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if isinstance(value, Settings):
                yield from ((f"{key}.{inner}", found, why) for inner, found, why in value.set_in_vain())
            if key in idle and value != field.get_default(call_default_factory=True):
                yield key, value, idle[key]

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if not self._is_later_default(key)}

    def _is_later_default(self, key: str) -> bool:
        field = type(self).model_fields.get(key)
        if field is None or not any(isinstance(mark, Later) for mark in field.metadata):
            return False
        return bool(getattr(self, key) == field.get_default(call_default_factory=True))
