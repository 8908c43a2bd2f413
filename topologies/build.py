"""Writes the networks of this folder from public facts: ``python topologies/build.py FOLDER``.

FOLDER holds the five underlays of Marfoq et al. (NeurIPS 2020, arXiv 2010.12229) as GraphML, converted from the data of
https://github.com/omarfoq/communication-in-cross-silo-fl (Apache-2.0): edges with ``distance`` (km) and, where known,
``capacity`` (bit/s). Abilene and NSFNET are written from the tables below, with great-circle distances.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import networkx as nx

DELAY_MODEL = "latency_ms = 0.0085 * distance_km + 4"
UNKNOWN_CAPACITY = 1e9  # bit/s, as in Marfoq et al.
MARFOQ = (
    "Marfoq et al., Throughput-Optimal Topology Design for Cross-Silo Federated Learning, NeurIPS 2020, arXiv "
    "2010.12229; data of github.com/omarfoq/communication-in-cross-silo-fl (Apache-2.0)"
)

# Latitude, longitude (degrees, city centres, public geography).
PLACES = {
    "Amsterdam": (52.37, 4.90), "Ann Arbor": (42.28, -83.74), "Antwerp": (51.22, 4.40), "Ashburn": (39.04, -77.49),
    "Atlanta": (33.75, -84.39), "Austin": (30.27, -97.74), "Barcelona": (41.39, 2.17), "Berlin": (52.52, 13.40),
    "Boston": (42.36, -71.06), "Boulder": (40.01, -105.27), "Bracknell": (51.41, -0.75), "Bratislava": (48.15, 17.11),
    "Brussels": (50.85, 4.35), "California": (37.35, -121.96), "Champaign": (40.12, -88.24),
    "Chicago": (41.85, -87.65), "College Park": (38.98, -76.94), "Copenhagen": (55.68, 12.57),
    "Dallas": (32.78, -96.80), "Denver": (39.74, -104.98), "Dublin": (53.35, -6.26), "Dusseldorf": (51.23, 6.78),
    "El Segundo": (33.92, -118.42), "Fort Worth": (32.76, -97.33), "Frankfurt": (50.11, 8.68),
    "Geneva": (46.20, 6.14), "Hamburg": (53.55, 9.99), "Hayward": (37.67, -122.08), "Herndon": (38.97, -77.39),
    "Houston": (29.76, -95.36), "Indianapolis": (39.77, -86.16), "Irvine": (33.68, -117.83),
    "Ithaca": (42.44, -76.50), "Jacksonville": (30.33, -81.66), "Jersey City": (40.73, -74.08),
    "Kansas City": (39.11, -94.63), "Lincoln": (40.80, -96.67), "London": (51.51, -0.13),
    "Los Angeles": (34.05, -118.24), "Manchester": (53.48, -2.24), "Miami": (25.76, -80.19), "Milan": (45.46, 9.19),
    "Minneapolis": (44.98, -93.27), "Montreal": (45.50, -73.57), "Mumbai": (19.08, 72.88), "Munich": (48.14, 11.58),
    "New York": (40.71, -74.01), "Newark": (40.74, -74.17), "Oak Brook": (41.83, -87.93), "Oregon": (45.84, -119.70),
    "Palo Alto": (37.44, -122.14), "Paris": (48.86, 2.35), "Philadelphie": (39.95, -75.17),
    "Phoenix": (33.45, -112.07), "Pittsburgh": (40.44, -80.00), "Prague": (50.08, 14.44),
    "Princeton": (40.35, -74.66), "Rome": (41.90, 12.50), "Rotterdam": (51.92, 4.48), "Saint-Louis": (38.63, -90.20),
    "Salt Lake City": (40.76, -111.89), "San Diego": (32.72, -117.16), "San Jose": (37.34, -121.89),
    "San José": (37.34, -121.89), "Santa Clara": (37.35, -121.96), "Sao Paulo": (-23.55, -46.63),
    "Seattle": (47.61, -122.33), "Seoul": (37.57, 126.98), "Singapore": (1.35, 103.82), "South Bend": (41.68, -86.25),
    "Stockholm": (59.33, 18.07), "Sunnyvale": (37.37, -122.04), "Sydney": (-33.87, 151.21), "Tokyo": (35.68, 139.69),
    "Toronto": (43.65, -79.38), "Tukwila": (47.47, -122.26), "Vienna": (48.21, 16.37), "Virginia": (39.04, -77.49),
    "Waltham": (42.38, -71.24), "Washington DC": (38.90, -77.04), "Weehawken": (40.77, -74.02),
}  # fmt: skip

ABILENE = [
    ("Seattle", "Sunnyvale"), ("Seattle", "Denver"), ("Sunnyvale", "Los Angeles"), ("Sunnyvale", "Denver"),
    ("Los Angeles", "Houston"), ("Denver", "Kansas City"), ("Kansas City", "Houston"), ("Kansas City", "Indianapolis"),
    ("Houston", "Atlanta"), ("Chicago", "Indianapolis"), ("Chicago", "New York"), ("Indianapolis", "Atlanta"),
    ("Atlanta", "Washington DC"), ("New York", "Washington DC"),
]  # fmt: skip

NSFNET = [
    ("Seattle", "Palo Alto"), ("Seattle", "San Diego"), ("Seattle", "Champaign"), ("Palo Alto", "San Diego"),
    ("Palo Alto", "Salt Lake City"), ("San Diego", "Houston"), ("Salt Lake City", "Boulder"),
    ("Salt Lake City", "Ann Arbor"), ("Boulder", "Houston"), ("Boulder", "Lincoln"), ("Houston", "Atlanta"),
    ("Houston", "College Park"), ("Lincoln", "Champaign"), ("Champaign", "Pittsburgh"), ("Pittsburgh", "Atlanta"),
    ("Pittsburgh", "Ithaca"), ("Pittsburgh", "Princeton"), ("Ann Arbor", "Ithaca"), ("Ann Arbor", "Princeton"),
    ("Ithaca", "College Park"), ("Princeton", "College Park"),
]  # fmt: skip

UNDERLAYS = {
    "gaia": "Gaia: 11 Amazon EC2 regions, complete, capacities of the source",
    "aws_north_america": "22 Amazon data centres in North America, complete",
    "geant": "GEANT, the European research backbone, 40 countries",
    "exodus": "Exodus, a US and European ISP backbone (Rocketfuel AS 3967)",
    "ebone": "Ebone, a European ISP backbone (Rocketfuel AS 1755)",
}


# What the source's own distances reveal; kept, so that published results on these underlays can be compared.
REMARKS = {
    "aws_north_america": "the source measures San José from Costa Rica",
    "exodus": "the source measures Herndon from another town than the one in Virginia",
}


def main(folder: Path, out: Path) -> None:
    for name, what in UNDERLAYS.items():
        raw = nx.read_graphml(folder / f"{name}.graphml")
        links = [(u, v, d["distance"], d.get("capacity", UNKNOWN_CAPACITY)) for u, v, d in raw.edges(data=True)]
        unknown = sum("capacity" not in d for *_, d in raw.edges(data=True))
        note = f"{MARFOQ}; {DELAY_MODEL}; capacity of {unknown} of {len(links)} links unknown and set to 1 Gbit/s"
        note += f"; {REMARKS[name]}" if name in REMARKS else ""
        write(out, name, what, note, {node: _node(data) for node, data in raw.nodes(data=True)}, links)
    write_one_way(out, "geant")
    write_own(
        out, "abilene", "Abilene, the Internet2 backbone of February 2005, OC-192c links", ABILENE, 9953.28e6,
        "Internet2 (http://www.internet2.edu/pubs/200502-IS-AN.pdf), as in the Internet Topology Zoo",
    )  # fmt: skip
    write_own(
        out, "nsfnet", "NSFNET, the T1 backbone of 1991 in the 14-node form of the optical networking literature",
        NSFNET, 1.544e6, "NSF and Merit, NSFNET T1 backbone; links as commonly used since Mukherjee et al. 1996",
    )  # fmt: skip


def write_own(out: Path, name: str, what: str, pairs: list[tuple[str, str]], capacity: float, source: str) -> None:
    """A network given by its links between cities."""
    cities = list(dict.fromkeys(city for pair in pairs for city in pair))
    nodes = {city: {"label": city, "latitude": PLACES[city][0], "longitude": PLACES[city][1]} for city in cities}
    links = [(u, v, great_circle(PLACES[u], PLACES[v]), capacity) for u, v in pairs]
    write(out, name, what, f"{source}; great-circle distances between city centres; {DELAY_MODEL}", nodes, links)


def one_way(graph: nx.Graph[Any]) -> nx.DiGraph[Any]:
    """`graph` whose links work from the lower number to the higher alone, where that leaves it strongly connected."""
    directed = nx.DiGraph(graph)
    for u, v in sorted((min(edge), max(edge)) for edge in graph.edges):
        data = dict(directed.edges[v, u])
        directed.remove_edge(v, u)
        if not nx.is_strongly_connected(directed):
            directed.add_edge(v, u, **data)
    return directed


def write_one_way(out: Path, name: str) -> None:
    """A second file of a network that is written already, some of whose links work one way."""
    directed = one_way(nx.read_graphml(out / f"{name}.graphml", node_type=int))
    directed.graph["name"] = f"{name}_one_way"
    directed.graph["description"] += "; made one-way where that leaves it strongly connected"
    nx.write_graphml_xml(directed, out / f"{name}_one_way.graphml")


def write(out: Path, name: str, what: str, source: str, nodes: dict[str, dict[str, Any]], links: list[Any]) -> None:
    graph: nx.Graph[Any] = nx.Graph(name=name, description=what, source=source)
    number = {node: i for i, node in enumerate(nodes)}
    for node, data in nodes.items():
        graph.add_node(number[node], **data)
    for u, v, distance, capacity in links:
        attributes = {
            "distance_km": round(distance, 3),
            "latency_ms": round(0.0085 * distance + 4, 4),
            "bandwidth_mbps": capacity / 1e6,
        }
        graph.add_edge(number[u], number[v], **attributes)
    nx.write_graphml_xml(graph, out / f"{name}.graphml")


def _node(data: dict[str, Any]) -> dict[str, Any]:
    """Label and position; Rocketfuel's labels are ``City,+ST123``, a router number after the place."""
    raw = data["label"]
    place = raw.rstrip("0123456789")
    city = place.split(",")[0].replace("+", " ")
    label = f"{city} {raw[len(place) :]}".strip()
    if "latitude" in data:
        return {"label": label, "latitude": data["latitude"], "longitude": data["longitude"]}
    latitude, longitude = PLACES[city]
    return {"label": label, "latitude": latitude, "longitude": longitude}


def great_circle(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Kilometres between two (latitude, longitude), by the haversine formula on a sphere of radius 6371 km."""
    (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, place)) for place in (a, b))
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0 * math.asin(math.sqrt(h))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python topologies/build.py FOLDER_WITH_SOURCE_GRAPHML")
    main(Path(sys.argv[1]), Path(__file__).parent)
