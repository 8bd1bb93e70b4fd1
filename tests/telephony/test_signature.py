"""Twilio's signature."""

import pytest

from pipecat_duplex.telephony.signature import is_signed

# The example of Twilio's own libraries' tests.
TOKEN = "12345"
URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
FORM = {
    "CallSid": "CA1234567890ABCDE",
    "Digits": "1234",
    "From": "+14158675309",
    "To": "+18005551212",
    "Caller": "+14158675309",
}
SIGNATURE = "RSOYDt4T1cUTdK1PDd93/VVr8B8="


def test_twilios_own_example():
    assert is_signed(SIGNATURE, auth_token=TOKEN, url=URL, form=FORM)


@pytest.mark.parametrize(
    "changed",
    [
        {"signature": None},
        {"signature": ""},
        {"signature": "ünicode"},
        {"signature": SIGNATURE.lower()},
        {"auth_token": "12346"},
        {"url": URL + "0"},
        {"url": URL.replace("https", "http")},
        {"form": FORM | {"Digits": "12345"}},
        {"form": None},
    ],
)
def test_everything_counts(changed):
    arguments = {"signature": SIGNATURE, "auth_token": TOKEN, "url": URL, "form": FORM} | changed
    assert not is_signed(arguments.pop("signature"), **arguments)


def test_the_schemes_own_port_may_be_named():
    named = URL.replace("mycompany.com", "mycompany.com:443")
    assert is_signed(SIGNATURE, auth_token=TOKEN, url=named, form=FORM)
    other = URL.replace("mycompany.com", "mycompany.com:8443")
    assert not is_signed(SIGNATURE, auth_token=TOKEN, url=other, form=FORM)
