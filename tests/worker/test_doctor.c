/* shoal-worker doctor: its rules over hosts that we do not have, and the program on this one. */
#include "tests/worker/program.h"

#include "worker/doctor.h"
#include "worker/json.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static program_run run;
static doctor d;

/* The last finding's state; BAD ones say what to do. */
static doctor_state last(void)
{
    EXPECT(d.count > 0);
    const doctor_finding *f = &d.finding[d.count - 1];
    EXPECT(f->words[0] != '\0');
    if (f->state == DOCTOR_BAD) EXPECT(f->advice[0] != '\0');
    return f->state;
}

TEST(what_is_misconfigured_is_told_from_what_is_not)
{
    d = (doctor){0};
    doctor_judge_huge_pages(&d, "always madvise [never]");
    EXPECT_EQ_I64(last(), DOCTOR_BAD);
    doctor_judge_huge_pages(&d, "always [madvise] never");
    EXPECT_EQ_I64(last(), DOCTOR_OK);
    doctor_judge_memlock(&d, 64 << 20, true);
    EXPECT_EQ_I64(last(), DOCTOR_BAD);
    doctor_judge_memlock(&d, 64 << 20, false);
    EXPECT_EQ_I64(last(), DOCTOR_NOTE);
    doctor_judge_memlock(&d, UINT64_MAX, true);
    EXPECT_EQ_I64(last(), DOCTOR_OK);
    doctor_judge_files(&d, 256);
    EXPECT_EQ_I64(last(), DOCTOR_BAD);
    doctor_judge_files(&d, 1 << 20);
    EXPECT_EQ_I64(last(), DOCTOR_OK);
    doctor_judge_overcommit(&d, "2");
    EXPECT_EQ_I64(last(), DOCTOR_BAD);
    doctor_judge_overcommit(&d, "0");
    EXPECT_EQ_I64(last(), DOCTOR_OK);
    doctor_judge_load(&d, 9.5, 8);
    EXPECT_EQ_I64(last(), DOCTOR_NOTE);
    doctor_judge_governor(&d, "powersave");
    EXPECT_EQ_I64(last(), DOCTOR_BAD);
    doctor_judge_governor(&d, "performance");
    EXPECT_EQ_I64(last(), DOCTOR_OK);
    doctor_judge_numa(&d, 1, "1");
    EXPECT_EQ_I64(last(), DOCTOR_OK);
    doctor_judge_numa(&d, 2, "1");
    EXPECT_EQ_I64(last(), DOCTOR_BAD);
    doctor_judge_numa(&d, 2, "0");
    EXPECT_EQ_I64(last(), DOCTOR_OK);
}

static uint32_t count_bad(const doctor_card *card)
{
    uint32_t bad = 0;
    d = (doctor){0};
    doctor_judge_card(&d, card);
    for (uint32_t i = 0; i < d.count; i++)
        bad += d.finding[i].state == DOCTOR_BAD && d.finding[i].advice[0] != '\0';
    return bad;
}

TEST(a_card_without_ecc_held_down_or_with_lanes_missing_is_misconfigured)
{
    const doctor_card good = {.ecc = 1,
                              .clock = 1980,
                              .clock_max = 1980,
                              .throttle = 1,
                              .gen = 5,
                              .gen_max = 5,
                              .width = 16,
                              .width_max = 16,
                              .free = 79e9,
                              .memory = 80e9};
    EXPECT_EQ_U64(count_bad(&good), 0);
    doctor_card card = good;
    card.ecc = 0;
    EXPECT_EQ_U64(count_bad(&card), 1);
    card = good;
    card.throttle = 4; /* power cap */
    EXPECT_EQ_U64(count_bad(&card), 1);
    card = good;
    card.width = 8;
    EXPECT_EQ_U64(count_bad(&card), 1);
    card = good;
    card.gen = 1; /* idle */
    card.free = 10e9;
    EXPECT_EQ_U64(count_bad(&card), 0);
    doctor_card silent = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    EXPECT_EQ_U64(count_bad(&silent), 0);
    EXPECT_EQ_U64(d.count, 0);
}

/* The finding called `check` in run.out; the caller frees it. */
static cJSON *finding_of(const char *check)
{
    char *copy = strdup(run.out), *rest = NULL;
    cJSON *found = NULL;
    for (char *line = strtok_r(copy, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        cJSON *row = cJSON_Parse(line);
        EXPECT_MSG(row != NULL, "%s", line);
        EXPECT_EQ_STR(json_get(row, "schema")->valuestring, "shoal.doctor/1");
        bool bad = strcmp(json_get(row, "state")->valuestring, "bad") == 0;
        if (bad) EXPECT(json_get(row, "advice") != NULL);
        if (found == NULL && strcmp(json_get(row, "check")->valuestring, check) == 0)
            found = row;
        else
            cJSON_Delete(row);
    }
    free(copy);
    EXPECT_MSG(found != NULL, "no finding %s in %s%s", check, run.out, run.err);
    return found;
}

static uint32_t files_in(const char *path)
{
    uint32_t count = 0;
    DIR *folder = opendir(path);
    EXPECT(folder != NULL);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

TEST(this_host_is_measured_and_nothing_is_left_behind)
{
    uint32_t before = files_in(test_dir());
    PROGRAM_CALL(&run, "doctor", "--dir", test_dir(), "--device", "cpu", "-o", "json");
    EXPECT_MSG(run.exit_code == 0 || run.exit_code == 1, "%s", run.err);
    EXPECT_EQ_I64(run.exit_code, strstr(run.out, "\"state\":\"bad\"") != NULL);
    static const char *const measured[] = {"cpu_read",  "cpu_copy",   "cpu_gather",
                                           "disk_read", "disk_write", "loopback"};
    for (size_t i = 0; i < sizeof measured / sizeof *measured; i++) {
        cJSON *f = finding_of(measured[i]);
        EXPECT(json_get(f, "value")->valuedouble > 0);
        EXPECT_EQ_STR(json_get(f, "unit")->valuestring, "GB/s");
        cJSON_Delete(f);
    }
    cJSON *read = finding_of("cpu_read");
    EXPECT(json_get(read, "fraction")->valuedouble > 0);
    EXPECT(json_get(read, "fraction")->valuedouble <= 1);
    cJSON_Delete(read);
    EXPECT(files_in(test_dir()) <= before + 2); /* this test's own stdout and stderr */
}

TEST(a_folder_that_is_not_there_is_misconfigured)
{
    PROGRAM_CALL(&run, "doctor", "--dir", "@nowhere", "--device", "cpu", "--no-network", "-o",
                 "json");
    EXPECT_EQ_I64(run.exit_code, 1);
    cJSON *f = finding_of("disk");
    EXPECT_EQ_STR(json_get(f, "state")->valuestring, "bad");
    cJSON_Delete(f);
}

TEST(help_and_wrong_lines)
{
    PROGRAM_CALL(&run, "doctor", "--help");
    EXPECT_EQ_I64(run.exit_code, 0);
    EXPECT_EQ_STR(run.err, "");
    EXPECT_HAS_STR(run.out, "--no-network");
    PROGRAM_CALL(&run, "doctor", "--quick", "--dir", ".");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "--dir has no meaning");
    PROGRAM_CALL(&run, "doctor", "--quick", "--frob");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "unknown flag --frob");
    PROGRAM_CALL(&run, "doctor", "--device", "cuda", "--quick", "-o", "json");
    cJSON *f = finding_of("cuda");
    EXPECT(run.exit_code == 0 || json_get(f, "advice") != NULL);
    cJSON_Delete(f);
}

TEST(the_examples_of_the_help_run)
{
    char command[2048];
    int examples = 0;
    PROGRAM_CALL(&run, "doctor", "--help");
    char *at = strstr(run.out, "examples:\n");
    EXPECT(at != NULL);
    for (at += strlen("examples:\n"); strncmp(at, "  shoal-worker ", 15) == 0; examples++) {
        char *end = strchr(at, '\n');
        snprintf(command, sizeof command, "cd '%s' && '%s/bin/'%.*s >/dev/null", test_dir(),
                 TEST_BINARY_DIR, (int)(end - at - 2), at + 2);
        int how = system(command);
        EXPECT_MSG(how == 0 || how == 256, "%s ends with %d", command, how); /* 1: misconfigured */
        at = end + 1;
    }
    EXPECT_EQ_I64(examples, 2);
}

TEST_MAIN()
