"""The module repository: the modules that serve, and which of them a call means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attention_service.modules.loading import Module
from attention_service.modules.multi_head import MultiHeadModule
from attention_service.modules.text import TextModule
from attention_wire.answers import ModuleInfo, RefusedModule
from attention_wire.names import nearest
from attention_wire.problems import Code, FieldProblem, Loc, ProblemError


class Repository:
    """The modules that serve.

    Args:
        modules: by name.
        refused: the folders that were not loaded, with the reason. A module of the same name is
            what was there before, and serves on.
        default_text_module: the text module of calls that name none.
        folder: where they came from, for messages.
    """

    def __init__(
        self,
        modules: Mapping[str, Module],
        refused: Mapping[str, str],
        default_text_module: str | None,
        folder: Path,
    ) -> None:
        self._modules = dict(modules)
        self.refused = [RefusedModule(name=name, reason=why) for name, why in refused.items()]
        self._default_text_module = default_text_module
        self._folder = folder

    def infos(self) -> list[ModuleInfo]:
        """What each module is, by name."""
        return [module.info for module in self._modules.values()]

    def get(self, name: str, loc: Loc = ()) -> Module:
        """The module of that name.

        Raises:
            ProblemError: ``unknown_module``, with the names there are.
        """
        try:
            return self._modules[name]
        except KeyError:
            raise self._unknown(name, loc) from None

    def multi_head(self, name: str) -> MultiHeadModule:
        """The multi-head module of that name.

        Raises:
            ProblemError: ``unknown_module``, or ``module_kind`` for a text module.
        """
        module = self.get(name)
        if isinstance(module, MultiHeadModule):
            return module
        raise ProblemError(
            Code.MODULE_KIND,
            f"{name!r} is a text module, which takes no tensors: post text to /v1/text/attention "
            f'with "module": "{name}".',
        )

    def text(self, name: str | None) -> TextModule:
        """The text module of that name, or the one that calls without a name mean.

        Raises:
            ProblemError: ``unknown_module``, ``module_kind`` or ``module_not_chosen``.
        """
        loc: Loc = ("module",)
        if name is None:
            name, loc = self._text_module_of_none(), ()
        module = self.get(name, loc)
        if isinstance(module, TextModule):
            return module
        message = f"{name!r} is a multi-head module, which takes no text; name a text module"
        raise ProblemError.of_field("module", message, Code.MODULE_KIND)

    def _text_module_of_none(self) -> str:
        if self._default_text_module is not None:
            return self._default_text_module
        names = [name for name, m in self._modules.items() if isinstance(m, TextModule)]
        if len(names) == 1:
            return names[0]
        if not names:
            raise ProblemError(
                Code.UNKNOWN_MODULE,
                f"There is no text module in {self._folder}. Name another folder by --modules or "
                f"ATTENTION_MODULES (`make` has its own in .modules), or add one, for example "
                f"with `attention-service export sentence-transformers/all-MiniLM-L6-v2 "
                f"--name all-MiniLM-L6-v2 --modules {self._folder}`.",
            )
        message = (
            f"is needed, since there are several text modules: {', '.join(names)}; or let the "
            "service's setting text_module (ATTENTION_TEXT_MODULE) name the one to take"
        )
        raise ProblemError.of_field("module", message, Code.MODULE_NOT_CHOSEN)

    def _unknown(self, name: str, loc: Loc) -> ProblemError:
        for module in self.refused:
            if module.name == name:
                why = f"The module {name!r} was refused: {module.reason}"
                break
        else:
            loaded = ", ".join(self._modules) or "none"
            near = nearest(name, self._modules)
            hint = f" Did you mean {near!r}?" if near else ""
            why = f"There is no module {name!r:.100}; loaded are: {loaded}.{hint}"
        errors = [FieldProblem(loc=loc, msg=why)] if loc else []
        return ProblemError(Code.UNKNOWN_MODULE, why, errors)
