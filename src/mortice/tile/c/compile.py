from typing import Any
def compile_function(function: Any) -> Any:
    raise NotImplementedError
