"""Names of people who do not exist, chosen to break careless code.

Apostrophes, accents, other scripts, emoji, quotes, backslashes and tabs all occur, because practice
software lets a receptionist type them.
"""

from random import Random

__all__ = [
    "CITIES",
    "EMPLOYERS",
    "NOTES",
    "PAYERS",
    "STREETS",
    "email",
    "family_name",
    "given_name",
    "middle_name",
    "phone",
]

_GIVEN = [
    "Ada",
    "Bea",
    "Cora",
    "Dan",
    "Eli",
    "Finn",
    "Gus",
    "Hana",
    "Ivy",
    "Jack",
    "Kira",
    "Leo",
    "Mia",
    "Ned",
    "Ola",
    "Pia",
    "Quinn",
    "Rosa",
    "Sam",
    "Tess",
    "Uma",
    "Vic",
    "Wren",
    "Xena",
    "Yara",
    "Zed",
    "Noor",
    "Amir",
    "Lena",
    "Theo",
    "Iris",
    "Hugo",
]
_ODD_GIVEN = (
    "Zoë",
    "José",
    "Anne-Marie",
    "Siân",
    "D'Arcy",
    "Łucja",
    "美玲",
    "Сергей",
    "Sunny 🌞",
    'Robert "Bob"',
    "Mary  Jo",
    "Tab\tRow",
)
_FAMILY = [
    "Ashdown",
    "Birch",
    "Calder",
    "Dunmore",
    "Eastlake",
    "Fenwick",
    "Garside",
    "Holloway",
    "Inglewood",
    "Jessop",
    "Kestrel",
    "Larkin",
    "Marlowe",
    "Northcott",
    "Oakes",
    "Pemberton",
    "Quimby",
    "Redfern",
    "Sandoval",
    "Thorne",
    "Underhill",
    "Vance",
    "Westcott",
    "Yardley",
    "Zeller",
]
_ODD_FAMILY = (
    "O'Brien",
    "D'Angelo",
    "Núñez",
    "Müller-Østergård",
    "Łukasiewicz",
    "van der Berg",
    "St. John",
    "Back\\Slash",
    'Quote"Mark',
    "Smith; DROP TABLE",
    "李",
    "Ng",
)
_MIDDLE = ("Anthony", "Lee", "J", "J.", "Renée", "Ō", "")

CITIES = (
    ("Exampleton", "WA", "98101"),
    ("Sampleville", "OR", "97201"),
    ("Testford", "NY", "10001"),
    ("Fabricado", "CO", "80201"),
    ("Ville-d'Essai", "ME", "04101"),
)
"""City, two-letter state and zip code of made-up towns."""

STREETS = ("Nowhere Lane", "Placeholder Ave", "Mock Street", "Rue de l'Exemple", "Synthetic Blvd")
"""Streets on no map."""

EMPLOYERS = ("Acme Widgets", "Globex & Sons", "Initech", "Umbrella Café", None)
"""Employers of group plans."""

PAYERS = ("Sample Dental", "Example Mutual", "Mock Health Co", "Placeholder Life", "Delta-ish Dental", "Fabrikam Care")
"""Insurers that insure nobody."""

NOTES = (
    "Prefers mornings",
    "Latex allergy, call first ☎️",
    'Said: "it doesn\'t hurt"',
    "Line one\nLine two",
    "Tab\tseparated\\note",
    "",
)
"""Free text as typed at a front desk."""


def given_name(rng: Random) -> str:
    """A first name, one in twelve unusual."""
    return rng.choice(_ODD_GIVEN) if rng.random() < 0.08 else rng.choice(_GIVEN)


def family_name(rng: Random) -> str:
    """A last name, one in seven unusual."""
    return rng.choice(_ODD_FAMILY) if rng.random() < 0.14 else rng.choice(_FAMILY)


def middle_name(rng: Random) -> str | None:
    """A middle name; usually none, sometimes an empty string."""
    return rng.choice(_MIDDLE) if rng.random() < 0.3 else None


def email(rng: Random, number: int) -> str:
    """An address nobody can receive mail at (RFC 2606 domains)."""
    return f"person{number}@example.{'com' if rng.random() < 0.5 else 'org'}"


def phone(rng: Random) -> str:
    """Ten digits in the range reserved for fiction, 555-0100 to 555-0199."""
    return f"{rng.choice((206, 503, 212, 303))}55501{rng.randrange(100):02d}"
