"""What our LUN does not pass, each with its reason. Anything else that does not pass is a defect."""

from __future__ import annotations

REMOVABLE = "a fixed disk: the medium cannot be taken out"
SANITIZE = "left out by design: overwriting behind a LUN cannot promise what SANITIZE promises of the medium"
RESET = "LIO does not carry out this reset over iSCSI"
ATOMIC = "not offered: Linux tells of atomic writes from 6.11 on, and we are proved on 6.1 (decision 7)"

REST = "WSNZ of VPD B0h: no WRITE SAME to the end of the medium, whose length no time-out foresees"
RESIDUAL = (
    "its first command has one block in its CDB and an expected transfer length of 0, and is to be GOOD with a residual"
    " overflow: TCMU has no field for it, and LIO reckons it for its own disks only (decision 16); refused, nothing is"
)
READ, WRITTEN = f"{RESIDUAL} read", f"{RESIDUAL} written"
RELEASED = (
    "LIO answers the logout, and then releases what the session had reserved; who is quick finds the reservation"
    " (decision 16)"
)

# The kernel may be quick enough, or not.
RACES: dict[str, str] = dict.fromkeys(["Reserve6.Logout", "Reserve6.ITNexusLoss"], RELEASED)

FAILS: dict[str, str] = {
    "iSCSIResiduals.Read10Invalid": READ,
    "iSCSIResiduals.Read10Residuals": READ,
    "iSCSIResiduals.Read12Residuals": READ,
    "iSCSIResiduals.Read16Residuals": READ,
    "iSCSIResiduals.Write10Residuals": WRITTEN,
    "iSCSIResiduals.Write12Residuals": WRITTEN,
    "iSCSIResiduals.Write16Residuals": WRITTEN,
    "iSCSIResiduals.WriteVerify10Residuals": WRITTEN,
    "iSCSIResiduals.WriteVerify12Residuals": WRITTEN,
    "iSCSIResiduals.WriteVerify16Residuals": WRITTEN,
}

SKIPS: dict[str, str] = {
    **dict.fromkeys(
        [f"PreventAllow.{test}" for test in (
            "Simple", "Eject", "ITNexusLoss", "Logout", "WarmReset", "ColdReset", "LUNReset", "2ITNexuses")]
        + ["StartStopUnit.Simple"],
        REMOVABLE,
    ),
    **dict.fromkeys(
        [f"Sanitize.{test}" for test in (
            "BlockErase", "BlockEraseReserved", "CryptoErase", "CryptoEraseReserved", "ExitFailureMode",
            "InvalidServiceAction", "Overwrite", "OverwriteReserved", "Readonly", "Reservations", "Reset")],
        SANITIZE,
    ),
    **dict.fromkeys(["Reserve6.TargetColdReset", "Reserve6.TargetWarmReset"], RESET),
    **dict.fromkeys(["WriteSame10.ZeroBlocks", "WriteSame16.ZeroBlocks"], REST),
    **dict.fromkeys(
        [f"WriteAtomic16.{test}" for test in ("Simple", "BeyondEol", "ZeroBlocks", "WriteProtect", "DpoFua", "VPD")],
        ATOMIC,
    ),
}  # fmt: skip
