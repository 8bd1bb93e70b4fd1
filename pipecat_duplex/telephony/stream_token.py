"""Whether a stream belongs to a call that Twilio has announced: signatures can be replayed.

The signature of a WebSocket's request is the same for every call, so a seen one can be used to open
streams with it. The answer to Twilio's webhook therefore holds a token for this one call, which
Twilio hands on in the ``start`` message.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

VALID_SECS = 60.0
"""Twilio opens the stream within a few seconds of the answer."""


class StreamTokens:
    """Makes a token for each call, and takes it once.

    Example::

        tokens = StreamTokens()
        token = tokens.issue(form["CallSid"], form["AccountSid"])  # a <Parameter> of the TwiML
        ...
        if not tokens.take(stream.parameters.get("token"), stream.call_sid, stream.account_sid):
            await stream.refuse(StreamRefused(1008, "the stream token is wrong"))
    """

    def __init__(
        self,
        secret: bytes | None = None,
        *,
        valid_secs: float = VALID_SECS,
        now_secs: Callable[[], float] = time.time,
    ):
        """Initialize.

        Args:
            secret: What tokens are made with. ``None`` draws one: then the process that answers
                the webhook also takes the stream.
            valid_secs: How long a token is good for.
            now_secs: The time of day, in seconds.
        """
        self._secret = secret or secrets.token_bytes(32)
        self._valid_secs = valid_secs
        self._now_secs = now_secs
        self._taken: dict[str, float] = {}

    def issue(self, call_sid: str | None, account_sid: str | None) -> str:
        """Return a token for a call.

        Args:
            call_sid: The call, as the signed webhook names it.
            account_sid: Its account.
        """
        until = f"{self._now_secs() + self._valid_secs:.0f}"
        nonce = secrets.token_hex(8)
        return f"{until}.{nonce}.{self._sign(until, nonce, call_sid, account_sid)}"

    def take(self, token: str | None, call_sid: str | None, account_sid: str | None) -> bool:
        """Tell whether a token is good, and use it up.

        Args:
            token: As the peer gives it.
            call_sid: The call that the peer names.
            account_sid: The account that the peer names.
        """
        until, _, rest = (token or "").partition(".")
        nonce, _, signature = rest.partition(".")
        wanted = self._sign(until, nonce, call_sid, account_sid)
        if not hmac.compare_digest(signature.encode(errors="replace"), wanted.encode()):
            return False
        now_secs = self._now_secs()
        self._taken = {used: secs for used, secs in self._taken.items() if secs >= now_secs}
        if float(until) < now_secs or wanted in self._taken:
            return False
        self._taken[wanted] = float(until)
        return True

    def _sign(self, until: str, nonce: str, call_sid: str | None, account_sid: str | None) -> str:
        # Lengths keep apart what could else be divided in another place.
        parts = [part or "" for part in (until, nonce, call_sid, account_sid)]
        text = "".join(f"{len(part)}:{part}" for part in parts)
        digest = hmac.new(self._secret, text.encode(errors="replace"), hashlib.sha256)
        return digest.hexdigest()
