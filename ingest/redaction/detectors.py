"""Turns plain text into the places of secrets and personal data in it: the detectors that are more than a pattern.

Each has a `hint`, an RE2 pattern over the JSON line as it stands: a line without a match holds nothing that the
detector finds, so that most lines are never looked at in Python. A hint allows for what a line puts between two
characters (a backslash before a quote); whatever else is escaped makes a line suspect by itself.

Everything is RE2, whose time is linear in the text, so no text makes a detector hang.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import NamedTuple, cast

import phonenumbers
import re2
from stdnum import iban, luhn

_ESCAPED = r"\\[bfnrt]|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}"
# What may stand before a value that must not begin in the middle of a word; a line break is \n in a line.
LEFT = rf"(?:^|[^0-9A-Za-z]|{_ESCAPED})"
CONTEXT_BYTES = 64  # how much of the line before a value may decide what the value is


class Found(NamedTuple):
    """A value in a plain text."""

    start: int
    end: int
    value: bytes  # in the one form from which its token is made, however it was written


class Detector(NamedTuple):
    """`find` gives the values in a plain text, from left to right; `hint` is described above."""

    hint: str
    find: Callable[[bytes], Iterator[Found]]


def compiled(pattern: str) -> re.Pattern[bytes]:
    """A pattern for UTF-8 bytes. Raises re2.error for what RE2 does not take; its own log stays silent."""
    options = re2.Options()
    options.log_errors = False
    return cast("re.Pattern[bytes]", re2.compile(pattern, options))  # it has the same methods


def tested(pattern: str) -> re.Pattern[bytes]:
    """A pattern that is only asked whether it matches: without groups, three times as fast."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = 64 << 20  # the automaton of all hints together outgrows the default of 8 MiB
    return cast("re.Pattern[bytes]", re2.compile(pattern, options))  # it has the same methods


def detector_named(name: str, regions: Sequence[str]) -> Detector:
    """The detector of that name; raises KeyError. `regions` are whose national phone numbers count (ISO 3166)."""
    if name == "phone":
        return phone_detector(tuple(regions))
    return _DETECTORS[name]


def detector_names() -> list[str]:
    """The names that a policy may use."""
    return sorted([*_DETECTORS, "phone"])


# ---- secrets

_PRIVATE_KEY = compiled(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}-----|$)"
)
_URL_PASSWORD = compiled(r"[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s:/@\"'<>\x00]*:([^\s/@\"'<>\x00]+)@")
_BASIC = r"(?i:basic) {1,3}([a-z]{0,11}[A-Z0-9+/][A-Za-z0-9+/]{7,}={0,2})"  # a word is small letters: basic economy
_BASIC_AUTH = compiled(_BASIC)
_CLEAR_NAMES = (
    r"passw(?:or)?d|passphrase|pwd|api[_\- ]?key|access[_\-]?key|secret[_\-]?key|client[_\-]?secret|auth[_\-]?token"
    r"|access[_\-]?token|account[_\-]?key"
)
_VAGUE_NAMES = "token|secret|cookie|credentials?"  # also of a piece of text, a page of results
_ASSIGNED = r"(?:[\"'`]|\*\*)?\s{0,3}[=:](?:\*\*)?\s{0,3}"  # also behind a key in quotes, or in Markdown's bold type
_ASSIGNMENT = compiled(rf"((?i:{_CLEAR_NAMES}))({_ASSIGNED}[\"'`]?)([^\s\"'`<>,;&\x00]{{6,}})")
_VAGUE_ASSIGNMENT = compiled(rf"(?i:{_VAGUE_NAMES}){_ASSIGNED}[\"'`]?([A-Za-z0-9_\-.~+/=%]{{16,}})")
_NAMES = compiled(r"[A-Za-z_.\-/\[\]]+")
_WORDS = compiled(r"[A-Za-z\-]+")
_QUOTES = {b'"', b"'", b"`"}
_NAME_OF_SECRET = compiled(rf"(?i:{_CLEAR_NAMES}|{_VAGUE_NAMES})")
# What is said of a password, or its type in a schema.
_NO_SECRETS = frozenset(
    b"string boolean object integer varchar required optional invalid incorrect missing unknown undefined default "
    b"hidden masked redacted removed omitted expired changed encrypted hashed encoded protected forgotten example "
    b"placeholder nullable nothing".split()
)


def _find_private_keys(text: bytes) -> Iterator[Found]:
    """A block in PEM (RFC 7468), with or without its end."""
    for match in _PRIVATE_KEY.finditer(text):
        yield Found(match.start(), match.end(), match.group())


def _find_url_passwords(text: bytes) -> Iterator[Found]:
    """The password in an address's user information (RFC 3986, 3.2.1), and in a connection string of that form."""
    for match in _URL_PASSWORD.finditer(text):
        if not _is_placeholder(match[1]):
            yield Found(*match.span(1), match[1])


def _is_placeholder(value: bytes) -> bool:
    """Whether what stands for a password is none: `[password]`, `{password}`, `$PASSWORD`, `****`."""
    return value[:1] in {b"[", b"{", b"$"} or not any(chr(sign).isalnum() for sign in value)


def _find_basic_auth(text: bytes) -> Iterator[Found]:
    """The credentials of basic authentication (RFC 7617): base64 of a name, a colon and a password."""
    for match in _BASIC_AUTH.finditer(text):
        value = match[1]
        try:
            decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except binascii.Error:
            continue
        if b":" in decoded:
            yield Found(*match.span(1), value)


def _find_assignments(text: bytes) -> Iterator[Found]:
    """`API_KEY=...`, `password: ...` and `"token": "..."` in any text. Words and calls of prose and code stay."""
    for match in _ASSIGNMENT.finditer(text):
        value = match[3].rstrip(b".:)]}!?")
        is_folder = match[1].lower() == b"pwd" and value[:1] in {b"/", b"~"}  # the working one, not a password
        if len(value) < 6 or b"(" in value or is_folder or _is_placeholder(value):
            continue
        goes_on = text[match.end() : match.end() + 1] in {b" ", b"\t"}
        if _NAMES.fullmatch(value) is None or _is_password_of_letters(match[2], value, goes_on=goes_on):
            yield Found(match.start(3), match.start(3) + len(value), value)
    for match in _VAGUE_ASSIGNMENT.finditer(text):
        value = match[1].rstrip(b".")
        is_code = text[match.end() : match.end() + 1] in {b"(", b"["}
        if len(value) >= 16 and not is_code and _has_letters_and_digits(value):
            yield Found(match.start(1), match.start(1) + len(value), value)


def _is_password_of_letters(sign: bytes, value: bytes, *, goes_on: bool) -> bool:
    """Whether letters behind a sign of assignment are a secret: not a variable, a type, or a sentence's next word.

    `goes_on` says that a blank follows: only what is in quotes or right behind `=` is a value then. Behind a key in
    quotes, only what is in quotes as well.
    """
    is_word = _WORDS.fullmatch(value) is not None and value.lower() not in _NO_SECRETS
    is_quoted = sign[-1:] in _QUOTES
    is_set_off = is_quoted or (sign[:1] not in _QUOTES and (sign == b"=" or not goes_on))
    return is_word and is_set_off and _NAME_OF_SECRET.search(value) is None


def _has_letters_and_digits(value: bytes) -> bool:
    return any(48 <= sign <= 57 for sign in value) and any(chr(sign).isalpha() for sign in value)


# ---- personal data

_EMAIL = compiled(
    r"[^\x00-\x20\"(),:;<>@\[\\\]\x7f='`|/{}]+(?:@|%40)(?:[0-9A-Za-z\x{80}-\x{10ffff}]"
    r"[0-9A-Za-z\-\x{80}-\x{10ffff}]*\.)+[A-Za-z\x{80}-\x{10ffff}][0-9A-Za-z\-\x{80}-\x{10ffff}]+"
)


def _find_emails(text: bytes) -> Iterator[Found]:
    """Addresses with a dotted domain (RFC 5322's common part, and letters of any script)."""
    for match in _EMAIL.finditer(text):
        yield Found(match.start(), match.end(), match.group().lower().replace(b"%40", b"@"))


_INTERNATIONAL = r"\+ ?[0-9](?:[ .\-/()]{0,2}[0-9]){6,16}"
_AMERICAN = r"(?:1[ .\-])?(?:\(?[2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .\-])[2-9][0-9]{2}[ .\-][0-9]{4}"
_TRUNK = r"\(?00?[1-9][0-9]{0,4}\)?[ .\-/]{1,2}(?:\(0\))?[0-9]{2,8}(?:[ .\-/][0-9]{2,8}){0,4}"  # 00 is dialled for +
# Behind a colon a time goes on, as in 14:58:02.954242, so nothing with a leading zero begins there.
_PHONE = compiled(
    rf"(?:^|[^0-9A-Za-z.\-/+])(?:({_INTERNATIONAL})(?:[^0-9]|$)|({_AMERICAN})(?:[^0-9A-Za-z]|$))"
    rf"|(?:^|[^0-9A-Za-z.:\-/+])({_TRUNK})(?:[^0-9A-Za-z\-/]|$)"
)
# Short words only where no letter stands before them: a hotel is no telephone.
_PHONE_WORDS = (
    rf"(?:(?i:phone|mobile|whatsapp|telefon)|{LEFT}(?i:tel|cell|fax|sms))(?i:[_\- ]?(?:numbers?|nr|no|num)s?)?"
)
_DIGITS = r"\+?\(?[0-9](?:[ .\-/()]{0,2}[0-9])"
_NAMED_PHONE = compiled(rf"{_PHONE_WORDS}[\"' :=#]{{0,24}}(?:(?i:is|at|to) {{1,2}})?({_DIGITS}{{6,14}})(?:[^0-9]|$)")
_NO_NUMBER = compiled(r"[0-9]{1,2}[\-/.][0-9]{1,2}[\-/.][0-9]{4}|[0-9]{5}-[0-9]{4}$")  # a date, a ZIP code
_LONGEST = (12, 17)  # digits of a national number, and of an international one (E.164) behind its 00
_DATE = compiled(r"[0-9]{4}[\-/.][0-9]{2}[\-/.][0-9]{2}|[0-9]{1,2}[\-/.][0-9]{1,2}[\-/.][0-9]{4}")


@lru_cache(maxsize=4096)
def _phone_in(text: str, regions: tuple[str, ...]) -> str | None:
    """The number (E.164) that a text written like one is; None if it is none.

    A number in the international or the American form only has to be possible, for invented numbers (555 ...) have
    to go too; one in a national form with a leading zero has to be valid in one of the regions, as dates look like it.
    """
    is_national = text.lstrip("(").startswith("0")
    if is_national and (_NO_NUMBER.match(text.encode()) or sum(map(str.isdigit, text)) > _LONGEST[text[:2] == "00"]):
        return None
    for region in regions if is_national else ("US",):
        try:
            number = phonenumbers.parse(text, region)
        except phonenumbers.NumberParseException:
            continue
        is_number = phonenumbers.is_valid_number if is_national else phonenumbers.is_possible_number
        if is_number(number):
            return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
    return None


def phone_detector(regions: tuple[str, ...]) -> Detector:
    """Phone numbers: written as such, and any digits behind a word such as `phone`."""

    def find(text: bytes) -> Iterator[Found]:
        position = 0
        while match := _PHONE.search(text, position):
            start, position = match.span(match.lastindex or 0)
            value = _phone_in(text[start:position].decode(), regions)
            if value is not None:
                yield Found(start, position, value.encode())
        for match in _NAMED_PHONE.finditer(text):
            if _DATE.fullmatch(match[1]) is None:
                value = _phone_in(match[1].decode(), regions)
                digits = bytes(sign for sign in match[1] if 48 <= sign <= 57)
                yield Found(*match.span(1), digits if value is None else value.encode())

    # Less is counted than above: all hints are one automaton, and one that counts three things at once has a state for
    # each combination of them (then DuckDB reads 5 MB/s instead of 100).
    american = rf"(?:^|[^0-9A-Za-z.\-/+]|{_ESCAPED}){_AMERICAN}"
    trunk = (
        rf"(?:^|[^0-9A-Za-z.:\-/+]|{_ESCAPED})\(?00?[1-9][0-9]{{0,4}}\)?[ .\-/]{{1,2}}(?:\(0\))?[0-9]{{2,8}}"
        r"(?:[ .\-/][0-9]|[^0-9A-Za-z\-/]|$)"
    )
    shapes = rf"\+ ?[0-9](?:[ .\-/()]{{0,2}}[0-9]){{6}}|{american}|{trunk}"
    named = rf"{_PHONE_WORDS}[\"' :=\\#]*(?:(?i:is|at|to) {{1,2}})?{_DIGITS}{{6}}"
    return Detector(f"{shapes}|{named}", find)


_DIGIT_GROUPS = compiled(r"[0-9](?:[ \-]{0,2}[0-9]){11,}|[2-6][0-9]{3}\.[0-9]{4,6}\.[0-9]{4,5}(?:\.[0-9]{4})?")
_GROUP = compiled(r"[0-9]+")
_NO_FRACTION = compiled(r"\.0+(?:[^0-9A-Za-z]|$)")  # of a number that went through a table of floats
# Length and first digits of the issuers' cards (ISO/IEC 7812): a sum that fits is met by a tenth of all numbers.
_CARD = compiled(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    r"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11,16}|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"
    r"|6(?:011|4[4-9][0-9]|5[0-9]{2}|2[0-9]{2})[0-9]{12,15}|(?:50|5[6-8]|63|67)[0-9]{14,17}"
)


def _find_cards(text: bytes) -> Iterator[Found]:
    """Card numbers by issuer, length and check sum, in one piece or in groups, also behind other digits."""
    for run in _DIGIT_GROUPS.finditer(text):
        if _goes_on(text, run.start() - 1, -1) or _goes_on(text, run.end(), 1):
            continue
        groups = [match.span() for match in _GROUP.finditer(text, run.start(), run.end())]
        yield from _cards_of(text, groups)


def _goes_on(text: bytes, place: int, step: int) -> bool:
    """Whether a number goes on at this place: with a letter, as a hash does, or with a fraction other than 0."""
    if not 0 <= place < len(text) or (step > 0 and _NO_FRACTION.match(text, place)):
        return False
    is_fraction = text[place] == 46 and 0 <= place + step < len(text) and chr(text[place + step]).isdigit()
    return is_fraction or text[place : place + 1].isalnum()


def _cards_of(text: bytes, groups: list[tuple[int, int]]) -> Iterator[Found]:
    """Cards that are one or more whole groups of digits, the longest from each place."""
    place = 0
    while place < len(groups):
        digits, best = b"", None
        for last in range(place, min(place + 19, len(groups))):
            start, end = groups[last]
            digits += text[start:end]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and _CARD.fullmatch(digits) and luhn.is_valid(digits.decode()):
                best = last, digits
        if best is None:
            place += 1
        else:
            yield Found(groups[place][0], groups[best[0]][1], best[1])
            place = best[0] + 1


_IBAN_COUNTRIES = (
    "AD AE AL AT AZ BA BE BG BH BI BR BY CH CR CY CZ DE DJ DK DO EE EG ES FI FK FO FR GB GE GI GL GR GT HN HR HU IE IL "
    "IQ IS IT JO KW KZ LB LC LI LT LU LV LY MC MD ME MK MN MR MT MU NI NL NO OM PK PL PS PT QA RO RS RU SA SC SD SE SI "
    "SK SM SO ST SV TL TN TR UA VA VG XK YE"
)
_IBAN_START = rf"(?i:{'|'.join(_IBAN_COUNTRIES.split())})[0-9]{{2}}"
_IBAN = compiled(rf"(?:^|[^0-9A-Za-z])({_IBAN_START}(?:[ \-]?[0-9A-Za-z]){{11,30}})")
_IBAN_PIECES = compiled(r"[0-9A-Za-z]+")


def _find_ibans(text: bytes) -> Iterator[Found]:
    """Account numbers (ISO 13616) whose check digits and country's length fit."""
    position = 0
    while match := _IBAN.search(text, position):
        start = match.start(1)
        position = start + 4  # the next one may begin in what looked like this one's end
        ends = [piece.end() for piece in _IBAN_PIECES.finditer(text, start, match.end(1))]
        if text[match.end(1) : match.end(1) + 1].isalnum():
            ends.pop()  # the last piece goes on behind what an IBAN can be
        for end in reversed(ends):  # a word behind it may look like its last group
            value = text[start:end].translate(None, b" -").upper()
            if iban.is_valid(value.decode()):
                yield Found(start, end, value)
                position = end
                break


_IPV4 = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}"
_IPV6 = r"[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?:(?:\.[0-9]{1,3}){3})?"
_IP = compiled(rf"(?:^|[^0-9A-Za-z.\-])({_IPV4})(?:[^0-9A-Za-z]|$)|(?:^|[^0-9A-Za-z.:])({_IPV6})(?:[^0-9A-Za-z:]|$)")
_LONG_GROUP = compiled(r"[0-9a-fA-F]{3}")


def _find_ips(text: bytes) -> Iterator[Found]:
    """Addresses of both kinds but those that mean this or any machine (127.0.0.1, 0.0.0.0, ::1, ::)."""
    position = 0
    while match := _IP.search(text, position):
        start, position = match.span(match.lastindex or 0)
        if text[position : position + 1] == b"." and text[position + 1 : position + 2].isdigit():
            continue  # an object id, with more parts
        written = text[start:position]
        if text[max(0, start - 7) : start] in {b"ection ", b"ersion "}:
            continue  # of a text, of a program
        try:
            address = ipaddress.ip_address(written.decode())
        except ValueError:
            continue
        # abc::def is a name in C++ or Rust rather than an address, and 1::2 a slice in Python.
        has_digit = any(48 <= sign <= 57 for sign in written)
        is_name = address.version == 6 and not (has_digit and _LONG_GROUP.search(written))
        if not (address.is_loopback or address.is_unspecified or is_name):
            yield Found(start, position, str(address).encode())


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_YEAR = r"(?:19[0-9]{2}|200[0-9]|201[0-2])"
_DAY = r"(?:0?[1-9]|[12][0-9]|3[01])"
_ORDINAL = r"(?i:st|nd|rd|th)?"
_DATES = (
    rf"{_YEAR}[\-/.][0-9]{{1,2}}[\-/.][0-9]{{1,2}}",
    rf"[0-9]{{1,2}}[\-/.][0-9]{{1,2}}[\-/.]{_YEAR}",
    rf"{_MONTH}\.?,? {_DAY}{_ORDINAL},? {_YEAR}",
    rf"{_DAY}{_ORDINAL}(?: of)? {_MONTH}\.?,? {_YEAR}",
)
_BIRTH_DATE = compiled(rf"(?:^|[^0-9A-Za-z.\-/])({'|'.join(_DATES)})(?:T00:00|[^0-9A-Za-z\-/]|$)")
_NUMBERS = re.compile(r"[0-9]+")
_EPOCH = date(1970, 1, 1)


def _find_birth_dates(text: bytes) -> Iterator[Found]:
    """Whole dates of the years 1900 to 2012 (but 1970-01-01, the clock's zero): in a log of today, of birth."""
    position = 0
    while match := _BIRTH_DATE.search(text, position):
        position = match.end(1)
        days = _dates_in(match[1].decode().lower())
        if days and days != [_EPOCH]:
            # 05/04/1990 can be two days: only one that is certain has the same token as its other spellings.
            yield Found(*match.span(1), days[0].isoformat().encode() if len(days) == 1 else match[1])


def _dates_in(text: str) -> list[date]:
    """The days that a date can mean: none, one, or two where day and month may be swapped."""
    numbers = [int(number) for number in _NUMBERS.findall(text)]
    month = next((place for place, name in enumerate(_MONTHS, 1) if name in text), None)
    if month is not None:
        year, orders = max(numbers), [(month, min(numbers))]
    elif numbers[0] >= 1900:
        year, orders = numbers[0], [(numbers[1], numbers[2])]
    else:
        year, orders = numbers[2], [(numbers[0], numbers[1]), (numbers[1], numbers[0])]
    days = set[date]()
    for month_number, day in orders:
        try:
            days.add(date(year, month_number, day))
        except ValueError:
            continue  # no such day
    return sorted(days)


_DETECTORS = {
    "private_key": Detector(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY", _find_private_keys),
    "url_password": Detector(r"://[^\s:/@\"'<>]*:[^\s/@\"'<>]+@", _find_url_passwords),
    "basic_auth": Detector(_BASIC, _find_basic_auth),
    "assignment": Detector(
        rf"(?i:{_CLEAR_NAMES}|{_VAGUE_NAMES})\\*(?:[\"'`]|\*\*)?(?:\s|{_ESCAPED})*[=:]",
        _find_assignments,
    ),
    "email": Detector(r"[^\s\"@](?:@|%40)[^\s\"@]+\.[^\s\"@.]{2}", _find_emails),
    "card": Detector(rf"{LEFT}[2-6](?:(?:[ \-]{{0,2}}[0-9]){{12}}|[0-9]{{3}}\.[0-9]{{4,6}}\.[0-9]{{4}})", _find_cards),
    "iban": Detector(rf"{LEFT}{_IBAN_START}(?:[ \-]?[0-9A-Za-z]){{6}}", _find_ibans),
    "ip": Detector(
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9a-fA-F:]::|::[0-9a-fA-F]|(?::[0-9a-fA-F]+){5}", _find_ips
    ),
    "birth_date": Detector(rf"{LEFT}(?:{'|'.join(_DATES)})", _find_birth_dates),
}
