"""Operators that a format cannot hold, by name: exporters tell them at the bottom of pages of advice."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from src.errors import UserError

# as torch's ONNX exporter, ExecuTorch and litert-torch write them, the surest first
_NAMED = (
    r"No ONNX function found for <OpOverload\(op='([\w.]+)'",
    r"Operator torch\._ops\.([\w.]+) is not in",
    r"Lowering not found: ([\w.]+)",
    r"target=torch\.ops\.([\w.]+)\]",
)
_DEPENDS = "data-dependent"  # torch.export's word for a step that the pixels decide
_LINE = re.compile(r"File \"[^\"]+\", line \d+, in \w+\n\s+(.+)")
_OVERLOAD = ".default"


@contextmanager
def naming_operators(name: str) -> Iterator[None]:
    """Turn an exporter's refusal within the block into one line that names what it cannot hold.

    Args:
        name: Of the format, for people.

    Raises:
        UserError: An operator, or a step that depends on the picture, that the format cannot hold. What has no such
            reason comes through as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = str(error)
        found = next((names for pattern in _NAMED if (names := re.findall(pattern, said))), [])
        if _DEPENDS in said:
            line = _LINE.search(said)
            step = f" ({line[1].strip()})" if line else ""
            raise UserError(
                f"{name} cannot hold a step of this net that depends on what the picture shows{step}; do without it"
            ) from error
        if not found:
            raise
        operators = ", ".join(sorted({each.removesuffix(_OVERLOAD) for each in found}))
        raise UserError(
            f"{name} has no operator for {operators} of this net; take another format, or a net without it"
        ) from error
