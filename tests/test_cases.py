"""Every public kind of fault that was tried on the package has a test; ``pytest -m case`` runs them."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
CASES = {
    "data": """01_polygon_far_outside_kills_process 02_annotation_id_0_makes_ap_0
        03_annotation_file_without_area_or_iscrowd 04_mask_png_with_alpha_is_whole_image 05_every_object_is_a_crowd
        06_one_exif_tag_stops_everything 07_infinity_and_long_integers 08_image_field_holds_a_data_uri
        09_one_file_under_two_image_ids 10_voc_filename_is_stale 11_excluded_images_with_text_ids_stay
        12_null_becomes_the_word_none 13_vqa_converter_edge_answers 14_pil_16_bit_picture_turns_white
        15_elongated_picture_crashes_the_refiner 16_check_passes_what_training_cannot_read
        17_ground_truth_lost_by_its_file_names 18_encodings 19_python2_pickle_with_bytes
        20_boxes_of_another_convention 21_jpeg_masks 22_roboflow_group_category 23_pictures_with_a_huge_header
        24_two_right_answers_score_a_sixth""",
    "model": """accumulation combining_marks config_message data_write ddp_launch deep_pil dynamic_rope ema_hook
        empty_pointer exif_pil export_processor fp16_rows generation_config model_facts nan_batch nan_prediction
        resume_head_order resume_schedule thin_image""",
    "security": """cache_folder cache_shared decompression diskfull exact overwrite parser polygon_segfault readers
        remote_code text two_runs""",
}


def all_cases() -> set[str]:
    """Names as marks have them: ``"data/18_encodings"``."""
    return {f"{kind}/{name}" for kind, names in CASES.items() for name in names.split()}


def cases_of(file: Path) -> set[str]:
    """Cases that tests of a file are marked with."""
    return set(re.findall(r'mark\.case\(\s*"([^"]+)"', file.read_text(encoding="utf-8")))


def test_every_case_has_a_test():
    wanted = all_cases()
    found: set[str] = set()
    for file in TESTS.rglob("test_*.py"):
        found |= cases_of(file)
    assert wanted - found == set()
    assert found - wanted == set(), "a marker names no case"
