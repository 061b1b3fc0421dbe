"""An address of Ray is tried before Ray is: what does not answer is refused in one line. Needs no Ray."""

import socket

import pytest

from sparsight.activations.ray_readers import _refuse_silent
from sparsight.errors import ModelError


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_is_refused_only_if_nothing_listens_there(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
        _refuse_silent(address)
    with pytest.raises(ModelError, match=f"no Ray cluster at {address}: .*refused; start one") as error:
        _refuse_silent(address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", [None, "auto", "local", "head"])
def test_what_is_no_host_and_port_is_left_to_ray(address: str | None) -> None:
    _refuse_silent(address)
