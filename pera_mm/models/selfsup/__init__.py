from pera_mm.models.selfsup.pera import PerA

__all__ = ['PerA']
