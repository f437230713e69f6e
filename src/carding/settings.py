"""The values of conf/command/card.yaml, which says what each means."""

from dataclasses import dataclass

from src.core.errors import ConfigError


@dataclass
class CardSettings:
    """Which model a card is of, and where it goes; `clinical` says what is asked of its predictions."""

    subject: str | None = None
    own_root: str | None = None
    folder: str = "reports"
    publish: bool = True

    @property
    def wanted(self) -> str:
        """What was typed as model=.

        Raises:
            ConfigError: There is nothing.
        """
        if self.subject is None or not self.subject.strip():
            raise ConfigError(
                "model",
                "name one: a run id, a registered model (derm, derm@champion, derm/3) or a file",
            )
        return self.subject.strip()
