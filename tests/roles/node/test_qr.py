"""QR codes for terminals."""

from __future__ import annotations

import segno

from calnet.roles.node.qr import qr_lines

URL = "https://id.example/device?user_code=ABCD-EFGH"


def test_lines_are_the_codes_modules_in_half_blocks() -> None:
    lines = qr_lines(URL)
    matrix = [[bool(module) for module in row] for row in segno.make(URL, error="l", micro=False).matrix]
    assert len({len(line) for line in lines}) == 1
    unpacked = [[letter not in upper for letter in line] for line in lines for upper in ("█▀", "█▄")]
    assert [row[2:-2] for row in unpacked[2 : 2 + len(matrix)]] == matrix
    assert all(not dark for row in unpacked[:2] for dark in row)
