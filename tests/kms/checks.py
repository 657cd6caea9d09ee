"""What every driver of a service must survive, whatever the service."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from cloister.errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from cloister.keys.drivers.remote import Limits, RemoteDriver
from cloister.keys.ports import KekDriver
from tests.kms.server import Reply, make_certificates
from tests.patience import until
from tests.vault_conformance import CONTEXT, DEK

__all__ = ["LINE", "QUICK", "ServiceDriverTests", "refusal"]

LINE = "0123456789abcdef" * 2
#: As in service, but without waiting long.
QUICK = Limits(pause=0.001)


def refusal(call: Callable[[], object], kind: type[CloisterError], code: str) -> CloisterError:
    """The call raises exactly that, in one sentence that shows neither key nor address."""
    with pytest.raises(kind) as info:
        call()
    assert type(info.value) is kind, info.value
    assert info.value.code == code
    text = str(info.value)
    assert text.endswith(".")
    assert "127.0.0.1" not in text
    assert DEK.hex() not in text
    return info.value


class ServiceDriverTests:
    """Beside ``KekDriverConformance``. Needs the fixtures ``double`` (with a ``Server``), ``options`` and ``quick``."""

    #: What this service answers when it forbids, is asked too often, or fails.
    forbidden: ClassVar[Reply]
    throttled: ClassVar[Reply]
    broken: ClassVar[Reply]
    #: A part of the path of the requests that may fail: not those of the login.
    only: ClassVar[str] = ""

    @pytest.fixture
    def quick(self) -> Callable[[Limits], KekDriver]:
        pytest.fail("this suite needs the fixture `quick`: opens a driver with the given limits")

    @pytest.fixture
    def hasty(
        self, quick: Callable[[Limits], KekDriver], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Limits], KekDriver]:
        """As ``quick``, without the call that shows at opening whether the service is there: on a busy machine even a
        right answer may take longer than limits that a test can wait for."""

        def opened(limits: Limits) -> KekDriver:
            with monkeypatch.context() as patch:
                patch.setattr(RemoteDriver, "started", lambda driver: driver)
                return quick(limits)

        return opened

    def test_it_is_labelled_experimental(self, driver: KekDriver) -> None:
        assert driver.experimental

    def test_what_a_moment_mends_is_tried_again(self, double: Any, quick: Callable[[Limits], KekDriver]) -> None:
        driver = quick(QUICK)
        handle = driver.create(LINE, 1)
        box = driver.wrap(handle, DEK, CONTEXT)
        for failure in (self.throttled, self.broken, "drop", "cut", "lost"):
            double.server.fail(failure, failure, only=self.only)
            assert driver.unwrap(handle, box, CONTEXT) == DEK
            assert double.server.pending == 0
        driver.close()

    @pytest.mark.parametrize("failure", ["throttled", "broken", "drop", "cut"])
    def test_it_is_tried_three_times_at_most(
        self, double: Any, quick: Callable[[Limits], KekDriver], failure: str
    ) -> None:
        driver = quick(QUICK)
        handle = driver.create(LINE, 1)
        box = driver.wrap(handle, DEK, CONTEXT)
        double.server.fail(*[getattr(self, failure, failure)] * 9, only=self.only)
        code = "vault.busy" if failure == "throttled" else "vault.unreachable"
        refusal(lambda: driver.unwrap(handle, box, CONTEXT), Unavailable, code)
        assert double.server.pending == 6
        driver.close()

    def test_a_refused_credential(self, double: Any, quick: Callable[[Limits], KekDriver]) -> None:
        driver = quick(QUICK)
        handle = driver.create(LINE, 1)
        box = driver.wrap(handle, DEK, CONTEXT)
        calls: list[Callable[[], object]] = [
            lambda: driver.create(LINE, 2),
            lambda: driver.wrap(handle, DEK, CONTEXT),
            lambda: driver.unwrap(handle, box, CONTEXT),
            lambda: driver.destroy(handle),
            lambda: driver.list(LINE),
        ]
        for call in calls:
            double.server.fail(self.forbidden, only=self.only)
            refusal(call, Denied, "vault.credential")
        assert driver.unwrap(handle, box, CONTEXT) == DEK
        driver.close()

    @pytest.mark.parametrize("failure", ["hang", "drip"])
    def test_a_service_that_does_not_answer_in_time(
        self, double: Any, quick: Callable[[Limits], KekDriver], hasty: Callable[[Limits], KekDriver], failure: str
    ) -> None:
        """Also one that sends a byte now and then, which a client's own time-outs don't end."""
        patient = quick(QUICK)
        handle = patient.create(LINE, 1)
        patient.close()
        driver = hasty(Limits(connect=0.5, read=0.3, total=1.0, retries=2, pause=0.001))
        double.server.fail(*[failure] * 3, only=self.only)
        began = time.monotonic()
        refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Unavailable, "vault.unreachable")
        assert time.monotonic() - began < 60  # that it ends at all; how fast is not for a test
        driver.close()

    def test_calls_that_hang_do_not_add_up(self, double: Any, quick: Callable[[Limits], KekDriver]) -> None:
        limits = Limits(connect=20, read=20, total=20, retries=0, pause=0.001, at_once=2)
        driver: Any = quick(limits)
        driver._limits = replace(limits, total=0.3)  # only now: opening may take as long as it does
        double.server.fail(*["hang"] * 2, only=self.only)
        for _ in range(4):
            refusal(lambda: driver.list(LINE), Unavailable, "vault.unreachable")
        until("the two that were let through", lambda: double.server.pending == 0)
        driver.close()

    def test_half_an_answer_is_none(self, double: Any, quick: Callable[[Limits], KekDriver]) -> None:
        driver = quick(QUICK)
        handle = driver.create(LINE, 1)
        box = driver.wrap(handle, DEK, CONTEXT)
        double.server.fail("half", "half", "half", only=self.only)
        with pytest.raises(Unavailable) as info:
            driver.unwrap(handle, box, CONTEXT)
        assert info.value.code in {"vault.answer", "vault.unreachable"}
        driver.close()

    def test_an_endless_answer_is_cut_off(self, double: Any, quick: Callable[[Limits], KekDriver]) -> None:
        driver = quick(Limits(pause=0.001, total=5, answer=100_000))
        double.server.fail(*["huge"] * 3, only=self.only)
        with pytest.raises(Unavailable) as info:
            driver.list(LINE)
        # gRPC says of a message that is too long what it also says of a service that is asked too often.
        assert info.value.code in {"vault.answer", "vault.unreachable", "vault.busy"}
        driver.close()

    def test_nobody_is_there(self, double: Any, quick: Callable[[Limits], KekDriver]) -> None:
        driver = quick(QUICK)
        double.server.stop()
        refusal(lambda: driver.list(LINE), Unavailable, "vault.unreachable")
        refusal(lambda: quick(QUICK), Unavailable, "vault.unreachable")
        driver.close()

    def test_a_certificate_of_another_ca_is_refused(
        self, options: dict[str, str], double: Any, quick: Callable[[Limits], KekDriver], tmp_path: Any
    ) -> None:
        # The same dictionary that `quick` opens with.
        seen = len(double.server.requests)
        options["ca"] = str(make_certificates(tmp_path / "other").ca)
        refusal(lambda: quick(QUICK), Untrusted, "vault.tls")
        del options["ca"]
        refusal(lambda: quick(QUICK), Untrusted, "vault.tls")
        assert len(double.server.requests) == seen, "a request went to a server that nobody vouched for"

    def test_labels_are_checked(self, driver: KekDriver) -> None:
        refusal(lambda: driver.create("../" + LINE, 1), Misuse, "vault.kek")
        refusal(lambda: driver.create(LINE, 0), Misuse, "vault.epoch")
        refusal(lambda: driver.create(LINE, 10**10), Misuse, "vault.epoch")
        refusal(lambda: driver.list(LINE.upper()), Misuse, "vault.kek")
