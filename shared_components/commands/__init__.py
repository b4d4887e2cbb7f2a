"""The commands of ``python -m shared_components``: options and help here, the work where it belongs.

The heavy imports are inside the functions, so that help and mistakes in an option take no time.
"""

from __future__ import annotations

from collections.abc import Callable

from shared_components.commands.bundles import adapt_bundle, export_bundle, import_checkpoint, run_stages
from shared_components.commands.data import (
    check_data,
    import_pickle,
    make_phantoms,
    prepare_breast_mri,
    prepare_ct_organs,
    prepare_mask_types,
    prepare_slices,
    simulate_angiograms,
)

COMMANDS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        check_data,
        make_phantoms,
        export_bundle,
        adapt_bundle,
        import_checkpoint,
        prepare_ct_organs,
        prepare_breast_mri,
        prepare_mask_types,
        import_pickle,
        prepare_slices,
        simulate_angiograms,
        run_stages,
    )
}
