"""Tables of the functions that (de)serialize objects, by type.

A `Dispatch` finds the function of the nearest base class.  A library's types are registered when
the first of them is seen (:meth:`Dispatch.register_lazy`), so a library that is not used is not
imported.  :mod:`distributed.protocol.families` looks types up in the four tables at the end of
this module.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar, overload

from distributed.base.callables import has_keyword
from distributed.base.text import shown_repr

__all__ = [
    "MODULES",
    "Dispatch",
    "cuda_deserialize",
    "cuda_serialize",
    "dask_deserialize",
    "dask_serialize",
    "takes_keyword",
    "typename",
]

F = TypeVar("F", bound=Callable[..., Any])


def typename(cls: type) -> str:
    """Return the module and name of a type; only the name for builtins.

    Examples
    --------
    >>> typename(int)
    'int'
    """
    module = cls.__module__
    return cls.__name__ if not module or module == "builtins" else f"{module}.{cls.__name__}"


_has_keyword = lru_cache(maxsize=512)(has_keyword)


def takes_keyword(func: Callable[..., Any], keyword: str) -> bool:
    """Return whether *func* has a parameter *keyword*; as `has_keyword`, but cached."""
    try:
        return _has_keyword(func, keyword)
    except TypeError:  # *func* is not hashable
        return has_keyword(func, keyword)


class _Registry(dict[type, Callable[..., Any]]):
    """The functions registered in a `Dispatch`.

    It is the original's ``_lookup``, from which tests and other code remove types.
    """

    def __init__(self, table: Dispatch):
        super().__init__()
        self._table = table

    def __delitem__(self, cls: type) -> None:
        super().__delitem__(cls)
        self._table._forget(cls)

    def pop(self, cls: type, *default: Any) -> Any:
        func = super().pop(cls, *default)
        self._table._forget(cls)
        return func


class Dispatch:
    """Functions by the type of their first argument.

    Parameters
    ----------
    name
        The name of the table, for error messages.

    Attributes
    ----------
    resolved
        Type → the function that `dispatch` found for it; cleared when anything is registered.

    Examples
    --------
    >>> area = Dispatch("area")
    >>> @area.register(int)
    ... def square(x):
    ...     return x * x
    >>> area(3), area(True)
    (9, 1)
    """

    def __init__(self, name: str = "dispatch"):
        self.name = name
        self._lookup: dict[type, Callable[..., Any]] = _Registry(self)
        # The types that were registered, by `typename`.
        self._named: dict[str, type] = {}
        self.resolved: dict[type, Callable[..., Any]] = {}
        # Top-level module -> functions that register its types; removed after all of them ran.
        self._lazy: dict[str, list[Callable[[], Any]]] = {}
        # All modules that ever were in _lazy.
        self._libraries: set[str] = set()
        # Held while the functions in _lazy run, so that other threads wait for the registration.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Dispatch {self.name}: {len(self._lookup)} types>"

    @overload
    def register(self, cls: type | tuple[type, ...], func: F) -> F: ...

    @overload
    def register(self, cls: type | tuple[type, ...]) -> Callable[[F], F]: ...

    def register(self, cls: type | tuple[type, ...], func: F | None = None) -> F | Callable[[F], F]:
        """Use *func* for a type or several, and their subclasses; also a decorator."""

        def enter(func: F) -> F:
            for one in cls if isinstance(cls, tuple) else (cls,):
                if not isinstance(one, type):
                    raise TypeError(
                        f"types are registered for {self.name}, not {one!r}; "
                        "use register_lazy for a library that is not imported yet"
                    )
                self._lookup[one] = func
                self._named[typename(one)] = one
            self.resolved.clear()
            return func

        return enter if func is None else enter(func)

    @overload
    def register_lazy(self, toplevel: str, func: F) -> F: ...

    @overload
    def register_lazy(self, toplevel: str) -> Callable[[F], F]: ...

    def register_lazy(self, toplevel: str, func: F | None = None) -> F | Callable[[F], F]:
        """Call *func* when a type of the module *toplevel* is seen, to register its types.

        Examples
        --------
        >>> table = Dispatch()
        >>> @table.register_lazy("fractions")
        ... def register_fractions():
        ...     from fractions import Fraction
        ...
        ...     table.register(Fraction, str)
        >>> from fractions import Fraction
        >>> table(Fraction(1, 2))
        '1/2'
        """

        def enter(func: F) -> F:
            self._lazy.setdefault(toplevel, []).append(func)
            self._libraries.add(toplevel)
            self.resolved.clear()
            return func

        return enter if func is None else enter(func)

    def dispatch(self, cls: type) -> Callable[..., Any]:
        """Return the function for *cls*.

        Raises
        ------
        TypeError
            If nothing is registered for it or any of its bases.
        """
        try:
            return self.resolved[cls]
        except KeyError:
            pass
        for base in cls.__mro__:
            toplevel = str(getattr(base, "__module__", "")).partition(".")[0]
            if toplevel in self._lazy:
                self._register_library(toplevel)
            if base in self._lookup:
                func = self.resolved[cls] = self._lookup[base]
                return func
        raise TypeError(f"No dispatch for {cls!r}: nothing is registered for {self.name}")

    def is_of_library(self, cls: type) -> bool:
        """Return whether *cls* itself is registered, and belongs to a `register_lazy` library."""
        return cls in self._lookup and cls.__module__.partition(".")[0] in self._libraries

    def find_type(self, name: str) -> type:
        """Return the type that a message names, without running code that the message chooses.

        The type must be registered, or be a subclass of a registered type in a module that is
        already imported.  Only modules of `register_lazy` are imported.

        Parameters
        ----------
        name
            The result of `typename`.

        Raises
        ------
        TypeError
            If there is no such type.

        Examples
        --------
        >>> table = Dispatch("area")
        >>> table.register(int, abs)
        <built-in function abs>
        >>> table.find_type("int"), table.find_type("bool")
        (<class 'int'>, <class 'bool'>)
        """
        if not isinstance(name, str):
            raise TypeError(f"{shown_repr(name, 100)} is not the name of a type")
        toplevel = name.partition(".")[0]
        if toplevel in self._lazy:
            self._register_library(toplevel)
        cls = self._named.get(name)
        if cls is not None:
            return cls
        module, _, attribute = name.rpartition(".")
        imported = sys.modules.get(module or "builtins")
        cls = None if imported is None else vars(imported).get(attribute)
        if not isinstance(cls, type):
            raise TypeError(f"no type named {name:.100} is registered for {self.name}")
        self.dispatch(cls)
        return cls

    def _forget(self, cls: type) -> None:
        self._named.pop(typename(cls), None)
        self.resolved.clear()

    def _register_library(self, toplevel: str) -> None:
        with self._lock:
            for register in self._lazy.get(toplevel, ()):
                register()
            self._lazy.pop(toplevel, None)

    def __call__(self, arg: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the function for the type of *arg* with all arguments."""
        return self.dispatch(type(arg))(arg, *args, **kwargs)


dask_serialize = Dispatch("dask_serialize")
dask_deserialize = Dispatch("dask_deserialize")
cuda_serialize = Dispatch("cuda_serialize")
cuda_deserialize = Dispatch("cuda_deserialize")


MODULES = {
    "numpy": "distributed.protocol.numpy",
    "scipy": "distributed.protocol.scipy",
    "sparse": "distributed.protocol.sparse",
    "pyarrow": "distributed.protocol.arrow",
    "h5py": "distributed.protocol.h5py",
    "netCDF4": "distributed.protocol.netcdf4",
    "torch": "distributed.protocol.torch",
    "torchvision": "distributed.protocol.torch",
    "keras": "distributed.protocol.keras",
    "cupy": "distributed.protocol.cupy",
    "cupyx": "distributed.protocol.cupy",
    "numba": "distributed.protocol.numba",
    "rmm": "distributed.protocol.rmm",
    # These libraries have their own serializers.
    "cudf": "cudf.comm.serialize",
    "dask_cudf": "cudf.comm.serialize",
    "cuml": "cuml.comm.serialize",
}
"""Top-level module of a library → module that registers its types when it is imported."""

_ON_DEVICES = ("cupy", "cupyx", "numba", "rmm", "cudf", "dask_cudf", "cuml")

for _library, _module in MODULES.items():
    for _table in (dask_serialize, dask_deserialize):
        _table.register_lazy(_library, partial(importlib.import_module, _module))
for _library in _ON_DEVICES:
    for _table in (cuda_serialize, cuda_deserialize):
        _table.register_lazy(_library, partial(importlib.import_module, MODULES[_library]))
