# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made of the fuzzer's inputs and of what libFuzzer prints."""

import tempfile
import unittest
from pathlib import Path

import support  # noqa: F401, finds the tools

from qemu_fuzz import (INPUTS, coverage_of, crash_files, failure,
                       format_inputs, parse_inputs, status)


class Inputs(unittest.TestCase):
    def test_round_trip(self):
        inputs = {b"\x01\xff": "two bytes", b"\x00": "", b"": ""}
        del inputs[b""]
        text = format_inputs(["# comment"], inputs)
        self.assertEqual(text, "# comment\n01ff  # two bytes\n00\n")
        self.assertEqual(parse_inputs(text), inputs)

    def test_those_of_the_repository(self):
        inputs = parse_inputs(INPUTS.read_text())
        self.assertGreater(len(inputs), 40)
        self.assertLess(INPUTS.stat().st_size, 100_000)


class Output(unittest.TestCase):
    def test_status_is_the_last_one(self):
        self.assertEqual(status([
            "INFO: Seed: 1", "#2\tINITED cov: 20 ft: 21 exec/s: 0 rss: 1Mb",
            "#512\tpulse  cov: 44 ft: 60 corp: 9/1b exec/s: 102 rss: 9Mb",
            "==1== ERROR"]), (512, 44, 102))
        self.assertEqual(status([]), (0, 0, 0))

    def test_crash_files(self):
        self.assertEqual(crash_files("x\nartifact_prefix='/a/'; Test unit "
                                     "written to /a/crash-1\nBase64: AA\n"),
                         ["/a/crash-1"])

    def test_a_leak_is_told(self):
        with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
            log.write("aarch64: before\n==1==ERROR: LeakSanitizer: detected "
                      "memory leaks\n\nDirect leak of 8 byte(s)\n"
                      "    #1 0x7f in f /x/build/qemu-fuzz/../tree/hw/a.c:7\n"
                      "    #2 0x7f in main\nSUMMARY: AddressSanitizer: 8\n")
            log.flush()
            reason = failure("fuzz", 1, Path(log.name), []).reason
        self.assertEqual(
            reason, "ERROR: LeakSanitizer: detected memory leaks\n"
            "    #1 0x7f in f /x/build/qemu-fuzz/../tree/hw/a.c:7\n"
            "SUMMARY: AddressSanitizer: 8")

    def test_coverage_is_of_our_files(self):
        self.assertEqual(coverage_of(
            "COVERED_FUNC: hits: 3 edges: 2/3 a /x/build/tree/"
            "hw/arm/smmuv3.c:7\n"
            "COVERED_FUNC: hits: 1 edges: 1/1 b /x/build/qemu-fuzz/../tree/"
            "hw/arm/smmuv3.c:9\n"
            "COVERED_FUNC: hits: 1 edges: 1/1 c /x/tree/hw/pci/pci.c:1\n"),
            [f"{'hw/arm/smmuv3.c':36} {3:5} of {4:5}  75 %"])


if __name__ == "__main__":
    unittest.main()
