"""The land uses that can be drawn."""

from collections.abc import Callable

from pera_mm.scenes.canvas import Canvas
from pera_mm.scenes.plans import countryside, settlements

# Each plan with its zoom: a plan that needs more room is seen from further away.
PLANS: dict[str, tuple[Callable[[Canvas], None], float]] = {
    'airport': (settlements.airport, 1.3),
    'bare_land': (countryside.bare_land, 1.0),
    'dense_residential': (settlements.dense_residential, 1.0),
    'farmland': (countryside.farmland, 1.2),
    'forest': (countryside.forest, 0.9),
    'industrial': (settlements.industrial, 1.2),
    'meadow': (countryside.meadow, 0.9),
    'orchard': (countryside.orchard, 0.9),
    'parking': (settlements.parking, 0.7),
    'port': (settlements.port, 1.0),
    'river': (countryside.river, 1.2),
    'sparse_residential': (settlements.sparse_residential, 0.9),
    'sports': (settlements.sports, 1.0),
    'storage_tanks': (settlements.storage_tanks, 1.0),
    'viaduct': (settlements.viaduct, 1.2),
}
LAND_USES = tuple(PLANS)
