"""What a program returns beside tensors: formats differ in what they can hold of it."""

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument

from bnfold.errors import UnsupportedModelError


def require_none_of(kinds: tuple[type, ...], program: ExportedProgram, holder: str) -> None:
    """Refuses a program that returns constants of some types.

    Args:
        kinds: The types.
        program: The program.
        holder: What cannot hold them, for the message.

    Raises:
        UnsupportedModelError: It does.
    """
    for spec in program.graph_signature.output_specs:
        if isinstance(spec.arg, ConstantArgument) and isinstance(spec.arg.value, kinds):
            value = spec.arg.value
            message = f"the model returns {value!r:.60}, a {type(value).__name__}, which {holder} cannot hold"
            hint = "Let its forward return tensors alone, or write the state dict as .safetensors."
            raise UnsupportedModelError(message, hint=hint)
