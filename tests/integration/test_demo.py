from __future__ import annotations

import pytest

from edge_app.errors import EdgeAppError
from edge_app.tools import demo


def test_a_demo_that_saw_no_result_fails() -> None:
    with pytest.raises(EdgeAppError, match=r"no result in 0\.01 s") as caught:
        demo.run(seconds=0.01)
    assert caught.value.hint
