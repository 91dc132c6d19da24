"""Hand-made knowledge about the tables of world facts: what is wrong or disputed in them, and second names of answers.

A value is left out where reference works disagree, where it changed lately, and where a right answer would count as wrong.
"""

from __future__ import annotations

import re

# Country codes: states that exist no more (AN, CS), places without a population of their own, and disputed names.
NOT_COUNTRIES = frozenset("AN CS AQ BV GS HM IO PN TF UM EH PS".split())

# (country code, field): the right value, or None to leave it out.
CORRECTIONS: dict[tuple[str, str], str | None] = {
    ("NL", "name"): "Netherlands",
    ("TL", "name"): "Timor-Leste",
    ("KZ", "capital"): "Astana",
    ("PW", "capital"): "Ngerulmud",
    ("GE", "capital"): None,  # Georgia is also a state of the USA, and so is its continent another one.
    ("GQ", "capital"): None,  # moved
    ("IL", "capital"): None,  # disputed
    ("LK", "capital"): None,  # the legislative capital is another city
    ("MS", "capital"): None,  # abandoned
    ("NR", "capital"): None,  # none by law
    ("AW", "currency"): "Florin",
    ("BA", "currency"): "Convertible Mark",
    ("BG", "currency"): None,  # changed in 2026
    ("BY", "currency"): "Ruble",
    ("CN", "currency"): "Renminbi",
    ("KH", "currency"): "Riel",
    ("VE", "currency"): "Bolivar",
    ("ZW", "currency"): None,  # several
    ("SX", "calling_code"): None,  # the table has the one before 2011
    ("VA", "calling_code"): None,  # not in use
    # On two continents, or counted to one or the other, or a continent itself.
    **{(code, "continent"): None for code in "AM AU AW AZ CW CY GE KZ RU TL TR".split()},
}

# Codes of dependent and of disputed territories: in which country a city of theirs lies is a matter of opinion. The Republic of
# the Congo is among them because its name is a part of its neighbour's name.
COUNTRIES_WITHOUT_CITIES = NOT_COUNTRIES | frozenset(
    """AI AS AW AX BL BM BQ CC CG CK CW CX FK FO GF GG GI GL GP GU HK IM JE KY MF MO MP MQ MS NC NF NU PF PM PR RE SH SJ SX TC
    TK TW VG VI WF XK YT""".split()
)
# (country code, first-level region) of the table: Crimea and Donbas, Kashmir, Abkhazia, Somaliland, Transnistria, Northern
# Cyprus, Jerusalem and the West Bank.
DISPUTED_REGIONS = frozenset(
    {
        ("UA", "05"),
        ("UA", "11"),
        ("UA", "14"),
        ("UA", "20"),
        ("IN", "12"),
        ("IN", "41"),
        ("PK", "06"),
        ("PK", "07"),
        ("GE", "02"),
        ("GE", "73"),
    }
    | {("SO", region) for region in "12 19 20 21 22".split()}
    | {("MD", "58"), ("MD", "62"), ("CY", "01"), ("CY", "02"), ("IL", "06"), ("IL", "WE")}
)
# Closed, or known by another city than the one where they lie.
AIRPORTS_LEFT_OUT = frozenset("CEB DIA FRS ISL JRO TXL".split())
# Regions of the United Kingdom whose names answer the question for a country, too.
PARTS_OF_COUNTRIES = {
    ("GB", "ENG"): "England",
    ("GB", "SCT"): "Scotland",
    ("GB", "WLS"): "Wales",
    ("GB", "NIR"): "Northern Ireland",
}

# Other texts that count as an answer, unless they contain it ("Nigerian naira") or differ from it in accents alone.
SECOND_NAMES: dict[str, tuple[str, ...]] = {
    # countries
    "Bosnia and Herzegovina": ("Bosnia",),
    "Cabo Verde": ("Cape Verde",),
    "Czechia": ("Czech Republic",),
    "Democratic Republic of the Congo": ("Democratic Republic of Congo", "DR Congo", "D.R. Congo", "DRC", "Congo-Kinshasa"),
    "Eswatini": ("Swaziland",),
    "Ivory Coast": ("Côte d'Ivoire",),
    "Kyrgyzstan": ("Kyrgyz Republic",),
    "Myanmar": ("Burma",),
    "Netherlands": ("The Netherlands", "Holland"),
    "North Korea": ("DPRK",),
    "North Macedonia": ("Macedonia",),
    "Russia": ("Russian Federation",),
    "Timor-Leste": ("East Timor", "Timor Leste"),
    "Turkey": ("Türkiye",),
    "United Arab Emirates": ("UAE", "U.A.E."),
    "United Kingdom": ("UK", "U.K.", "Great Britain", "Britain"),
    "United States": ("USA", "US", "U.S.", "United States of America", "America"),
    "Vietnam": ("Viet Nam",),
    # capitals
    "Ashgabat": ("Ashkhabad",),
    "Astana": ("Nur-Sultan",),
    "Bern": ("Berne",),
    "Chisinau": ("Kishinev",),
    "Kyiv": ("Kiev",),
    "Mbabane": ("Lobamba",),
    "N'Djamena": ("Ndjamena",),
    "Nay Pyi Taw": ("Naypyidaw", "Naypyitaw"),
    "Nuku'alofa": ("Nukualofa",),
    "Port-au-Prince": ("Port au Prince",),
    "Porto-Novo": ("Porto Novo",),
    "Pretoria": ("Cape Town", "Bloemfontein"),
    "Sanaa": ("Sana'a",),
    "St. George's": ("Saint George's",),
    "Sucre": ("La Paz",),
    "Ulaanbaatar": ("Ulan Bator",),
    "Washington": ("Washington, D.C.", "Washington DC"),
    # cities of airports
    "Basrah": ("Basra",),
    "Chennai": ("Madras",),
    "Frankfurt am Main": ("Frankfurt",),
    "Ho Chi Minh City": ("Saigon",),
    "Kolkata": ("Calcutta",),
    "Mumbai": ("Bombay",),
    "New York City": ("New York",),
    "Ulan Bator": ("Ulaanbaatar",),
    "Yangon": ("Rangoon",),
    # currencies; `world_facts.py` adds the plural with an s
    "Balboa": ("US dollar", "U.S. dollar", "United States dollar"),
    "Bolivar": ("Bolivares",),
    "Colon": ("Colones",),
    "Convertible Mark": ("Mark", "Marka"),
    "Florin": ("Guilder",),
    "Guarani": ("Guaranies",),
    "Koruna": ("Koruny", "Crown"),
    "Krona": ("Kronor", "Kronur"),
    "Krone": ("Kroner",),
    "Leu": ("Lei",),
    "Lilangeni": ("Emalangeni",),
    "Loti": ("Maloti",),
    "Metical": ("Meticais",),
    "Pa'anga": ("Paanga",),
    "Quetzal": ("Quetzales",),
    "Real": ("Reais",),
    "Renminbi": ("Yuan", "RMB"),
    "Rial": ("Riyal", "Riyals"),
    "Ruble": ("Rouble", "Roubles"),
    "Shekel": ("Sheqel",),
    "Sol": ("Soles",),
    "Tugrik": ("Togrog",),
}

_WITH_ARTICLE = re.compile(
    "United .*|.* Islands|.*Republic.*|Bahamas|Comoros|Gambia|Isle of Man|Maldives|Netherlands|Philippines|Seychelles"
)


def with_article(country: str) -> str:
    """Return the name of a country as it is written in a sentence: "Nigeria", "the Netherlands"."""
    return f"the {country}" if _WITH_ARTICLE.fullmatch(country) else country
