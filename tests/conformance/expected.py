"""What our LUN does not pass, each with its reason. Anything else that does not pass is a defect."""

from __future__ import annotations

REMOVABLE = "a fixed disk: the medium cannot be taken out"
SANITIZE = "left out by design: overwriting behind a LUN cannot promise what SANITIZE promises of the medium"
RESET = "LIO does not carry out this reset over iSCSI"
RESIDUAL = "TCMU has no field for a residual of Data-Out; a length that contradicts the CDB is refused, nothing is done"
ATOMIC = "only storage that proves atomicity may offer it; the suite runs on one that does not"

REST = "WSNZ of VPD B0h: no WRITE SAME to the end of the medium, whose length no time-out foresees"
OVERFLOW = (
    "TCMU has no field for a residual overflow (READ_LEN can only shorten), and LIO reckons one for its own disks only,"
    " such as fileio; a READ of more than its buffer is refused, nothing is read"
)
RELEASED = "LIO answers the logout, and then releases what the session had reserved; who is quick finds the reservation"

# The kernel may be quick enough, or not.
RACES: dict[str, str] = dict.fromkeys(["Reserve6.Logout", "Reserve6.ITNexusLoss"], RELEASED)

FAILS: dict[str, str] = {
    "iSCSIdatasn.iSCSIDataSnInvalid": "LIO takes these PDUs before a backstore hears of them; fileio fails alike",
    "iSCSIResiduals.Read10Invalid": OVERFLOW,
    "iSCSIResiduals.Read10Residuals": OVERFLOW,
    "iSCSIResiduals.Read12Residuals": OVERFLOW,
    "iSCSIResiduals.Read16Residuals": OVERFLOW,
    "iSCSIResiduals.Write10Residuals": RESIDUAL,
    "iSCSIResiduals.Write12Residuals": RESIDUAL,
    "iSCSIResiduals.Write16Residuals": RESIDUAL,
    "iSCSIResiduals.WriteVerify10Residuals": RESIDUAL,
    "iSCSIResiduals.WriteVerify12Residuals": RESIDUAL,
    "iSCSIResiduals.WriteVerify16Residuals": RESIDUAL,
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
