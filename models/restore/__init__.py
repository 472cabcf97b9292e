"""Face restoration: a 256 px crop in, a 512 px crop out. One engine per file; engines do not import one another."""

ENGINES = {
    "small": "models.restore.small:SmallRestorer",
    "gfpgan": "models.restore.gfpgan:GFPGAN",
    "spandrel": "models.restore.spandrel:SpandrelRestorer",
}
