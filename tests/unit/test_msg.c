/*
 * test_msg.c - which requests are taken, with which errorCode the others are refused, and what
 * answers look like.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/err.h"
#include "proto/json.h"
#include "proto/jwk.h"
#include "proto/kdf.h"
#include "proto/msg.h"

#define DOMAIN "kms.example.org"
#define ID     "0f8fad5b-d9cb-469f-a165-70867728950e"
#define ID2    "7c9e6679-7425-40de-944b-e07fc1f90ae7"
#define CLIENT "\"client\":{\"clientId\":\"web\",\"credential\":{\"bearer\":\"t\"}},"

#define PARAMS(rows)                                                                               \
    cr_make_param_array(__typeof__((rows)[0]), rows, sizeof(rows) / sizeof((rows)[0]))

static int
parse(struct kms_request *req, const char *text, const char **why)
{
    return kms_request_parse(req, text, strlen(text), DOMAIN, why);
}

struct row {
    char members[256]; /* of a request that has a client already */
    int code;
    enum kms_op op; /* when the code is KMS_CODE_OK */
};

ParameterizedTestParameters(msg, finds_the_op_by_method_and_uri)
{
    static struct row rows[] = {
        {"\"method\":\"delete\",\"uri\":\"/ecdhe/" ID "\"", 0, OP_CHANNEL_DELETE},
        {"\"method\":\"update\",\"uri\":\"/ping\"", 0, OP_PING},
        {"\"method\":\"update\",\"uri\":\"kms://" DOMAIN "/ping\"", 0, OP_PING},
        {"\"method\":\"create\",\"uri\":\"/keys\",\"count\":10", 0, OP_KEYS_CREATE},
        {"\"method\":\"update\",\"uri\":\"/keys/" ID "\",\"resourceUri\":\"/resources/" ID "\"", 0,
         OP_KEY_BIND},
        {"\"method\":\"retrieve\",\"uri\":\"/keys/" ID "\"", 0, OP_KEY_GET},
        {"\"method\":\"create\",\"uri\":\"/resources\"", 0, OP_RESOURCE_CREATE},
        {"\"method\":\"retrieve\",\"uri\":\"/resources/" ID "\"", 0, OP_RESOURCE_GET},
        {"\"method\":\"retrieve\",\"uri\":\"/resources/" ID "/keys\"", 0, OP_RESOURCE_KEYS},
        {"\"method\":\"create\",\"uri\":\"/authorizations\",\"resourceUri\":\"/resources/" ID
         "\",\"authIds\":[\"bob\"]",
         0, OP_AUTHORIZATIONS_CREATE},
        {"\"method\":\"create\",\"uri\":\"/authorizations\",\"resourceUri\":\"/resources/" ID
         "\",\"anonymous\":1",
         0, OP_AUTHORIZATIONS_CREATE},
        {"\"method\":\"retrieve\",\"uri\":\"/resources/" ID "/authorizations\"", 0,
         OP_AUTHORIZATIONS_LIST},
        {"\"method\":\"delete\",\"uri\":\"/authorizations/" ID "\"", 0, OP_AUTHORIZATION_DELETE},
        {"\"method\":\"delete\",\"uri\":\"/resources/" ID "/authorizations?authId=bob\"", 0,
         OP_AUTHORIZATION_DELETE},
        {"\"method\":\"delete\",\"uri\":\"/authorizations\",\"resourceUri\":\"/resources/" ID
         "\",\"userIds\":[\"bob\"]",
         0, OP_AUTHORIZATION_DELETE},
        {"\"method\":\"retrieve\",\"uri\":\"/resources/" ID "/releases\"", 0, OP_RELEASES},
        {"\"method\":\"retrieve\",\"uri\":\"/purposes/nosuch/keys\"", 0, OP_PURPOSE_KEYS},
        {"\"method\":\"retrieve\",\"uri\":\"/matters/" ID "/keys\"", 0, OP_MATTER_KEYS},
        {"\"method\":\"create\",\"uri\":\"/resources/" ID "/keys\",\"count\":1", 0,
         OP_RESOURCE_ROTATE},
        {"\"method\":\"create\",\"uri\":\"/resources/" ID "/recordings\",\"type\":\"recording\"", 0,
         OP_RECORDING_CREATE},
        {"\"method\":\"update\",\"uri\":\"/recordings/" ID "\"", 0, OP_RECORDING_UPDATE},
        {"\"method\":\"retrieve\",\"uri\":\"/recordings/" ID "\"", 0, OP_RECORDING_GET},
        {"\"method\":\"retrieve\",\"uri\":\"/resources/" ID "/recordings\"", 0, OP_RECORDINGS_LIST},
        {"\"method\":\"delete\",\"uri\":\"/recordings/" ID "\"", 0, OP_RECORDING_DELETE},
        {"\"method\":\"retrieve\",\"uri\":\"/publicKey\",\"assignedOrgId\":\"o\"", 0,
         OP_PUBLIC_KEY},
        {"\"method\":\"create\",\"uri\":\"/cmk\",\"assignedOrgId\":\"o\","
         "\"customerMasterKey\":\"AAAA\"",
         0, OP_CMK_CREATE},
        {"\"method\":\"retrieve\",\"uri\":\"/cmk\",\"assignedOrgId\":\"o\"", 0, OP_CMK_LIST},
        {"\"method\":\"update\",\"uri\":\"kms://" DOMAIN "/cmk/" ID
         "\",\"assignedOrgId\":\"o\",\"keyState\":\"Revoked\"",
         0, OP_CMK_UPDATE},
        {"\"method\":\"update\",\"uri\":\"default\",\"assignedOrgId\":\"o\","
         "\"keyState\":\"ACTIVE\"",
         0, OP_CMK_UPDATE},
        {"\"method\":\"delete\",\"uri\":\"/cmk\",\"assignedOrgId\":\"o\"", 0, OP_CMK_DELETE},
        {"\"method\":\"delete\",\"uri\":\"default\",\"assignedOrgId\":\"o\"", 400002, 0},
        {"\"method\":\"delete\",\"uri\":\"/cmk/" ID "\",\"assignedOrgId\":\"o\"", 400002, 0},
        {"\"method\":\"update\",\"uri\":\"/cmk/7\",\"keyState\":\"ACTIVE\"", 404001, 0},
        {"\"method\":\"retrieve\",\"uri\":\"/recordings/7\"", 404001, 0},

        {"\"method\":\"retrieve\",\"uri\":\"/matters/nouuid/keys\"", 404001, 0},
        {"\"method\":\"update\",\"uri\":\"/matters/" ID "/keys\"", 400002, 0},
        {"\"method\":\"delete\",\"uri\":\"/resources/" ID "/releases\"", 400002, 0},
        {"\"uri\":\"/ping\"", 400002, 0},
        {"\"method\":\"patch\",\"uri\":\"/ping\"", 400002, 0},
        {"\"method\":\"Update\",\"uri\":\"/ping\"", 400002, 0},
        {"\"method\":7,\"uri\":\"/ping\"", 400002, 0},
        {"\"method\":\"update\"", 400002, 0},
        {"\"method\":\"update\",\"uri\":7", 400002, 0},
        {"\"method\":\"update\",\"uri\":\"ping\"", 400002, 0},
        {"\"method\":\"update\",\"uri\":\"/pong\"", 400002, 0},
        {"\"method\":\"retrieve\",\"uri\":\"/ping\"", 400002, 0},
        {"\"method\":\"delete\",\"uri\":\"/keys/" ID "\"", 400002, 0},
        {"\"method\":\"create\",\"uri\":\"/ecdhe/" ID "\"", 400002, 0},
        {"\"method\":\"retrieve\",\"uri\":\"/keys/nouuid\"", 404001, 0},
        {"\"method\":\"retrieve\",\"uri\":\"kms://else.where/keys/" ID "\"", 404001, 0},
        {"\"method\":\"create\",\"uri\":\"kms://else.where/keys/" ID "\"", 400002, 0},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct row *row, msg, finds_the_op_by_method_and_uri)
{
    struct kms_request req;
    const char *why;
    char text[512];

    snprintf(text, sizeof(text), "{" CLIENT "\"requestId\":\"r-1\",%s}", row->members);
    cr_assert_eq(parse(&req, text, &why), row->code, "%s", row->members);
    cr_assert_str_eq(json_string_value(req.request_id), "r-1");
    cr_assert_str_eq(req.client_id, "web");
    cr_assert_str_eq(req.bearer, "t");
    if (row->code == KMS_CODE_OK) {
        cr_assert_eq(req.op, row->op, "%s", row->members);
        cr_assert_neq(kms_op_name(req.op), NULL);
    } else {
        cr_assert_gt(strlen(why), 0);
    }
    kms_request_release(&req);
}

struct member {
    char members[256];
    int code;
};

ParameterizedTestParameters(msg, checks_every_member)
{
#define KEYS "\"method\":\"create\",\"uri\":\"/keys\""
#define RES  "\"method\":\"create\",\"uri\":\"/resources\""
#define AUTH                                                                                       \
    "\"method\":\"create\",\"uri\":\"/authorizations\",\"resourceUri\":\"/resources/" ID "\""
#define LIST "\"method\":\"retrieve\",\"uri\":\"/resources/" ID "/keys\""
#define BIND "\"method\":\"update\",\"uri\":\"/keys/" ID "\""
#define GET  "\"method\":\"retrieve\",\"uri\":\"/keys/" ID "\""
#define WALK "\"method\":\"retrieve\",\"uri\":\"/purposes/indexing/keys\""
#define CASE "\"method\":\"retrieve\",\"uri\":\"/matters/" ID "/keys\""
#define BULK "\"method\":\"delete\",\"uri\":\"/authorizations\""
#define MORE "\"method\":\"create\",\"uri\":\"/resources/" ID "/keys\""
#define RECO "\"method\":\"create\",\"uri\":\"/resources/" ID "/recordings\""
#define DONE "\"method\":\"update\",\"uri\":\"/recordings/" ID "\""
#define CMK  "\"method\":\"create\",\"uri\":\"/cmk\",\"assignedOrgId\":\"o\""
#define CMKS "\"method\":\"update\",\"uri\":\"/cmk/" ID "\",\"assignedOrgId\":\"o\""
#define ROOT "\"method\":\"update\",\"uri\":\"default\",\"assignedOrgId\":\"o\""
    static struct member rows[] = {
        {KEYS, 400002},
        {KEYS ",\"count\":0", 400002},
        {KEYS ",\"count\":1", 0},
        {KEYS ",\"count\":100", 0},
        {KEYS ",\"count\":101", 400002},
        {KEYS ",\"count\":-1", 400002},
        {KEYS ",\"count\":1.0", 400002},
        {KEYS ",\"count\":\"1\"", 400002},
        {KEYS ",\"count\":null", 400002},
        {KEYS ",\"count\":4294967297", 400002},
        {KEYS ",\"count\":1,\"unknown\":{}", 0},
        {RES ",\"authIds\":[]", 0},
        {RES ",\"authIds\":[\"\"]", 400002},
        {RES ",\"authIds\":[7]", 400002},
        {RES ",\"authIds\":\"bob\"", 400002},
        {RES ",\"userIds\":{}", 400002},
        {RES ",\"authIds\":[\"a\\nb\"]", 400002},
        {RES ",\"authIds\":[\"/resources/" ID "\"]", 0},
        {RES ",\"authIds\":[\"kms://" DOMAIN "/resources/" ID "\"]", 0},
        {RES ",\"authIds\":[\"/keys/" ID "\"]", 400002},
        {RES ",\"authIds\":[\"/resources/7\"]", 404001},
        {RES ",\"authIds\":[\"kms:bob\"]", 400002},
        {RES ",\"authIds\":[\"kms://else.where/resources/" ID "\"]", 404001},
        {RES ",\"keyUris\":[\"/keys/" ID "\"]", 0},
        {RES ",\"keyUris\":\"/keys/" ID "\"", 400002},
        {RES ",\"keyUris\":[7]", 400002},
        {RES ",\"keyUris\":[\"" ID "\"]", 400002},
        {RES ",\"keyUris\":[\"/resources/" ID "\"]", 400002},
        {RES ",\"keyUris\":[\"/keys/7\"]", 404001},
        {RES ",\"keyUris\":[\"kms://else.where/keys/" ID "\"]", 404001},
        {RES ",\"anonymous\":-1", 400002},
        {RES ",\"anonymous\":101", 400002},
        {RES ",\"anonymous\":true", 400002},
        {RES ",\"ttl\":0", 0},
        {RES ",\"ttl\":-1", 0}, /* kmsd refuses it, naming the range */
        {RES ",\"ttl\":3600", 0},
        {RES ",\"ttl\":\"1h\"", 0},
        {RES ",\"ttl\":99999999999999999999", 400002},
        {RES ",\"kind\":\"space\"", 0},
        {RES ",\"kind\":\"meeting\"", 0},
        {RES ",\"kind\":\"calendar\"", 0},
        {RES ",\"kind\":\"Space\"", 400002},
        {RES ",\"kind\":\"\"", 400002},
        {RES ",\"kind\":\"room\"", 400002},
        {RES ",\"kind\":0", 400002},
        {RES ",\"kind\":null", 400002},
        {GET ",\"purpose\":\"dlp\"", 0},
        {GET ",\"purpose\":\"no such purpose\"", 0},
        {GET ",\"purpose\":\"\"", 400002},
        {GET ",\"purpose\":7", 400002},
        {GET ",\"purpose\":[\"dlp\"]", 400002},
        {GET ",\"purpose\":\"a\\nb\"", 400002},
        {GET ",\"purpose\":"
             "\"0123456789012345678901234567890123456789012345678901234567890123\"",
         0},
        {GET ",\"purpose\":"
             "\"01234567890123456789012345678901234567890123456789012345678901234\"",
         400002},
        {GET ",\"matter\":\"" ID "\"", 0},
        {GET ",\"matter\":\"the big one\"", 0}, /* an unknown matter */
        {GET ",\"matter\":\"\"", 400002},
        {GET ",\"matter\":null", 400002},
        {GET ",\"cursor\":\"AAAA\"", 0},
        {GET ",\"cursor\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"", 0},
        {GET ",\"cursor\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"", 400002},
        {GET ",\"cursor\":\"AAAA=\"", 400002},
        {GET ",\"cursor\":\"\"", 400002},
        {GET ",\"cursor\":0", 400002},
        {WALK, 0},
        {WALK ",\"count\":1000", 0},
        {WALK ",\"count\":1001", 400002},
        {WALK ",\"count\":0", 400002},
        {WALK ",\"purpose\":\"indexing\"", 0},
        {WALK ",\"purpose\":\"dlp\"", 400002},
        {CASE, 0},
        {CASE ",\"count\":1001", 400002},
        {CASE ",\"matter\":\"" ID "\"", 0},
        {CASE ",\"matter\":\"" ID2 "\"", 400002},
        {CASE ",\"matter\":\"x\"", 400002},
        {CASE ",\"purpose\":\"dlp\"", 0}, /* SQL refuses it */
        {RES ",\"security\":\"standard\"", 0},
        {RES ",\"security\":\"standard\",\"kind\":\"file\"", 0},
        {RES ",\"security\":\"zero-trust\",\"kind\":\"meeting\"", 0},
        {RES ",\"security\":\"zero-trust\"", 400002},
        {RES ",\"security\":\"zero-trust\",\"kind\":\"space\"", 400002},
        {RES ",\"security\":\"Zero-Trust\",\"kind\":\"meeting\"", 400002},
        {RES ",\"security\":\"\"", 400002},
        {RES ",\"security\":null", 400002},
        {RES ",\"count\":1", 0},
        {RES ",\"count\":100", 0},
        {RES ",\"count\":0", 400002},
        {RES ",\"count\":101", 400002},
        {RES ",\"count\":\"1\"", 400002},
        {RES ",\"count\":1,\"keyUris\":[]", 0},
        {RES ",\"count\":1,\"keyUris\":[\"/keys/" ID "\"]", 400002},
        {MORE, 400002},
        {MORE ",\"count\":0", 400002},
        {MORE ",\"count\":100", 0},
        {MORE ",\"count\":101", 400002},
        {RECO, 400002},
        {RECO ",\"type\":\"transcript\"", 0},
        {RECO ",\"type\":\"Recording\"", 400002},
        {RECO ",\"type\":7", 400002},
        {RECO ",\"type\":\"recording\",\"loc\":\"https://files.example/1\"", 0},
        {RECO ",\"type\":\"recording\",\"loc\":\"\"", 400002},
        {RECO ",\"type\":\"recording\",\"loc\":null", 400002},
        {RECO ",\"type\":\"recording\",\"loc\":\"a\\nb\"", 400002},
        {DONE, 0},
        {DONE ",\"tag\":\"AAAAAAAAAAAAAAAAAAAAAA\"", 0},
        {DONE ",\"tag\":\"AAAAAAAAAAAAAAAAAAAAAB\"", 400002}, /* bits left over */
        {DONE ",\"tag\":\"AAAAAAAAAAAAAAAAAAAAA\"", 400002},
        {DONE ",\"tag\":\"AAAAAAAAAAAAAAAAAAAAAAA\"", 400002},
        {DONE ",\"tag\":\"AA\"", 400002}, /* a tag of a byte is forged in no time */
        {DONE ",\"tag\":\"\"", 400002},
        {DONE ",\"tag\":7", 400002},
        {DONE ",\"loc\":\"x\",\"tag\":\"AAAAAAAAAAAAAAAAAAAAAA\",\"type\":7", 0},
        {CMK, 400002},
        {CMK ",\"customerMasterKey\":\"AAAA\"", 0},
        {CMK ",\"customerMasterKey\":\"AAA=\"", 0},
        {CMK ",\"customerMasterKey\":\"AAA\"", 400002},
        {CMK ",\"customerMasterKey\":\"__--\"", 400002},
        {CMK ",\"customerMasterKey\":\"\"", 400002},
        {CMK ",\"customerMasterKey\":7", 400002},
        {"\"method\":\"create\",\"uri\":\"/cmk\",\"customerMasterKey\":\"AAAA\"", 400002},
        {"\"method\":\"retrieve\",\"uri\":\"/publicKey\"", 400002},
        {"\"method\":\"retrieve\",\"uri\":\"/cmk\",\"assignedOrgId\":\"\"", 400002},
        {"\"method\":\"delete\",\"uri\":\"/cmk\",\"assignedOrgId\":7", 400002},
        {CMKS, 400002},
        {CMKS ",\"keyState\":\"active\"", 0},
        {CMKS ",\"keyState\":\"removedClean\"", 0},
        {CMKS ",\"keyState\":\"Recovering\"", 0},
        {CMKS ",\"keyState\":\"OFF\"", 400002},
        {CMKS ",\"keyState\":1", 400002},
        {ROOT ",\"keyState\":\"Active\"", 0},
        {ROOT ",\"keyState\":\"REVOKED\"", 400002},
        {AUTH, 400002},
        {AUTH ",\"authIds\":[]", 400002},
        {AUTH ",\"authIds\":[],\"anonymous\":0", 400002},
        {AUTH ",\"userIds\":[\"bob\"]", 0},
        {"\"method\":\"create\",\"uri\":\"/authorizations\",\"authIds\":[\"bob\"]", 400002},
        {"\"method\":\"create\",\"uri\":\"/authorizations\",\"resourceUri\":\"/resources/7\","
         "\"authIds\":[\"bob\"]",
         404001},
        {BIND, 400002},
        {BIND ",\"resourceUri\":7", 400002},
        {BIND ",\"resourceUri\":\"/keys/" ID "\"", 400002},
        {BIND ",\"resourceUri\":\"/resources/" ID "/keys\"", 400002},
        {BIND ",\"resourceUri\":\"kms://else.where/resources/" ID "\"", 404001},
        {LIST ",\"count\":1", 0},
        {LIST ",\"count\":10000", 0},
        {LIST ",\"count\":10001", 400002},
        {LIST ",\"count\":0", 400002},
        {LIST ",\"boundAfter\":\"2026-11-22T13:55:00.000Z\"", 0},
        {LIST ",\"boundAfter\":\"yesterday\"", 400002},
        {LIST ",\"boundAfter\":1763819700", 400002},
        {LIST ",\"boundBefore\":\"2026-11-22\"", 400002},
        {LIST ",\"boundBefore\":\"2026-11-22T13:55:00+01:00\"", 0},
        {BULK ",\"authIds\":[\"bob\"]", 400002},
        {BULK ",\"resourceUri\":\"/resources/" ID "\"", 400002},
        {BULK ",\"resourceUri\":\"/resources/" ID "\",\"authIds\":[]", 400002},
        {"\"method\":\"delete\",\"uri\":\"/resources/" ID "/authorizations\"", 400002},
        {"\"method\":\"delete\",\"uri\":\"/resources/" ID "/authorizations?authId=kms%3Ax\"",
         400002},
        {"\"method\":\"delete\",\"uri\":\"/resources/" ID "/authorizations?authId=%2Fresources%2F7"
         "\"",
         404001},
        {"\"method\":\"create\",\"uri\":\"/ecdhe\"", 400002},
        {"\"method\":\"create\",\"uri\":\"/ecdhe\",\"jwk\":\"x\"", 400002},
        {"\"method\":\"create\",\"uri\":\"/ecdhe\",\"jwk\":{}", 400002},
        {"\"method\":\"create\",\"uri\":\"/ecdhe\",\"jwk\":{\"kty\":\"OKP\",\"crv\":\"X25519\","
         "\"x\":\"hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo\"}",
         400003},
        {"\"method\":\"create\",\"uri\":\"/ecdhe\",\"jwk\":{\"kty\":\"oct\",\"k\":\"AAAA\"}",
         400003},
        {"\"method\":\"create\",\"uri\":\"/ecdhe\",\"jwk\":{\"kty\":\"EC\",\"crv\":\"P-384\"}",
         400003},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct member *row, msg, checks_every_member)
{
    struct kms_request req;
    const char *why;
    char text[512];

    snprintf(text, sizeof(text), "{\"requestId\":7,%s}", row->members);
    cr_assert_eq(parse(&req, text, &why), row->code, "%s: %s", row->members, why);
    if (row->code != KMS_CODE_OK)
        cr_assert_gt(strlen(why), 0, "%s", row->members);
    kms_request_release(&req);
}

struct envelope {
    char members[256];
    int code;
    char id[16];     /* request_id as JSON text, "" when it is NULL */
    char client[16]; /* client_id */
    char bearer[16]; /* "" when NULL */
    char behalf[16]; /* "" when NULL */
};

ParameterizedTestParameters(msg, reads_who_asks)
{
    static struct envelope rows[] = {
        {"\"x\":1", 0, "", "", "", ""},
        {"\"requestId\":\"r\"", 0, "\"r\"", "", "", ""},
        {"\"requestId\":\"\"", 0, "\"\"", "", "", ""},
        {"\"requestId\":0", 0, "0", "", "", ""},
        {"\"requestId\":-5", 0, "-5", "", "", ""},
        {"\"requestId\":1.5", 400002, "", "", "", ""},
        {"\"requestId\":null", 400002, "", "", "", ""},
        {"\"requestId\":[]", 400002, "", "", "", ""},
        {"\"requestId\":\"a\\tb\"", 0, "\"a\\tb\"", "", "", ""},
        {"\"requestId\":{},\"client\":{\"clientId\":\"c\"}", 400002, "", "c", "", ""},
        {"\"client\":{}", 0, "", "", "", ""},
        {"\"client\":[]", 400002, "", "", "", ""},
        {"\"client\":null", 400002, "", "", "", ""},
        {"\"client\":{\"clientId\":7}", 400002, "", "", "", ""},
        {"\"client\":{\"clientId\":\"c\",\"credential\":\"t\"}", 400002, "", "c", "", ""},
        {"\"client\":{\"clientId\":\"c\",\"credential\":{}}", 0, "", "c", "", ""},
        {"\"client\":{\"credential\":{\"bearer\":\"t\",\"userId\":\"u\"}}", 0, "", "", "t", ""},
        {"\"client\":{\"credential\":{\"bearer\":7}}", 400002, "", "", "", ""},
        {"\"client\":{\"credential\":{\"bearer\":\"t\",\"onBehalfOf\":\"bob\"}}", 0, "", "", "t",
         "bob"},
        {"\"client\":{\"credential\":{\"bearer\":\"t\",\"onBehalfOf\":\"\"}}", 400002, "", "", "t",
         ""},
        {"\"client\":{\"credential\":{\"onBehalfOf\":true}}", 400002, "", "", "", ""},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct envelope *row, msg, reads_who_asks)
{
    struct buf id = BUF_INIT;
    struct kms_request req;
    const char *why;
    char text[512];

    snprintf(text, sizeof(text), "{\"method\":\"update\",\"uri\":\"/ping\",%s}", row->members);
    cr_assert_eq(parse(&req, text, &why), row->code, "%s", row->members);
    if (req.request_id != NULL)
        cr_assert_eq(kms_json_put(&id, req.request_id), KMS_OK);
    cr_assert_str_eq(buf_str(&id), row->id);
    cr_assert_str_eq(req.client_id, row->client);
    cr_assert_str_eq(req.bearer == NULL ? "" : req.bearer, row->bearer);
    cr_assert_str_eq(req.on_behalf_of == NULL ? "" : req.on_behalf_of, row->behalf);
    buf_release(&id);
    kms_request_release(&req);
}

struct syntax {
    char text[160];
    int code;
    char id[16];
};

ParameterizedTestParameters(msg, tells_bad_strings_from_bad_json)
{
    static struct syntax rows[] = {
        {"", 400001, ""},
        {"[]", 400001, ""},
        {"7", 400001, ""},
        {"{\"requestId\":\"r\"", 400001, ""},
        {"{\"requestId\":\"r\",\"requestId\":\"r\"}", 400001, ""},
        {"{\"requestId\":\"r\"} ?", 400001, ""},
        {"{\"requestId\":\"r\",\"uri\":\"\\u0000\"}", 400002, "r"},
        {"{\"requestId\":\"r\",\"uri\":\"x\\ud800y\"}", 400002, "r"},
        {"{\"requestId\":\"r\",\"uri\":\"x\\uDc00y\"}", 400002, "r"},
        {"{\"requestId\":\"r\",\"uri\":\"\\ud83d\\ud83d\"}", 400002, "r"},
        {"{\"requestId\":\"r\",\"\\udc00\":1}", 400002, "r"},
        {"{\"requestId\":\"r\\u0000\"}", 400002, ""},
        {"{\"requestId\":9,\"uri\":\"\\ud800\"}", 400002, ""},
        {"{\"requestId\":\"r\",\"count\":99999999999999999999}", 400002, "r"},
        {"{\"requestId\":99999999999999999999}", 400002, ""},
        {"{\"requestId\":\"r\",\"count\":1e999}", 400001, ""},
        {"{\"requestId\":\"r\",\"uri\":\"\\u0000\",}", 400001, ""},
        {"{\"requestId\":\"r\",\"uri\":\"\\u00\"}", 400001, ""},
        {"{\"requestId\":\"r\",\"uri\":\"\\\\u0000\",}", 400001, ""},
        {"{\"requestId\":\"r\",\"uri\":\"\\ud83d\\udd11\",}", 400001, ""},
        {"{\"requestId\":\"r\",\"uri\":\"\\ud800", 400001, ""},
        {"\\", 400001, ""},
        {"\\ud800\\", 400001, ""},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct syntax *row, msg, tells_bad_strings_from_bad_json)
{
    struct kms_request req;
    const char *why;

    cr_assert_eq(parse(&req, row->text, &why), row->code, "%s", row->text);
    cr_assert_gt(strlen(why), 0);
    if (*row->id != '\0')
        cr_assert_str_eq(json_string_value(req.request_id), row->id);
    kms_request_release(&req);
}

Test(msg, joins_auth_ids_and_user_ids_in_order_without_doubles)
{
    static const char text[] =
        "{\"method\":\"create\",\"uri\":\"/resources\",\"ttl\":60,\"anonymous\":2,"
        "\"userIds\":[\"carol\",\"bob\",\"kms://" DOMAIN "/resources/" ID "\"],"
        "\"authIds\":[\"bob\",\"/resources/" ID "\",\"alice\",\"bob\"],"
        "\"keyUris\":[\"/keys/" ID "\",\"kms://" DOMAIN "/keys/" ID2 "\",\"/keys/" ID "\"]}";
    struct kms_request req;
    char id[UUID_TEXT + 1];
    const char *why;

    cr_assert_eq(parse(&req, text, &why), KMS_CODE_OK, "%s", why);
    cr_assert_eq(req.n_auth_ids, 4);
    cr_assert_str_eq(req.auth_ids[0].user, "bob");
    cr_assert(req.auth_ids[1].is_resource);
    uuid_format(id, &req.auth_ids[1].resource);
    cr_assert_str_eq(id, ID);
    cr_assert_str_eq(req.auth_ids[2].user, "alice");
    cr_assert_str_eq(req.auth_ids[3].user, "carol");
    cr_assert_eq(req.n_keys, 2);
    uuid_format(id, &req.keys[1]);
    cr_assert_str_eq(id, ID2);
    cr_assert_eq(req.ttl, 60);
    cr_assert_eq(req.anonymous, 2);
    kms_request_release(&req);
}

Test(msg, takes_lists_of_100_and_not_of_101)
{
    int n, i, members;
    static const char *const names[] = {"authIds", "keyUris"};

    for (members = 0; members < 2; members++) {
        for (n = 100; n <= 101; n++) {
            struct buf text = BUF_INIT;
            struct kms_request req;
            const char *why;

            buf_putf(&text, "{\"method\":\"create\",\"uri\":\"/resources\",\"%s\":[",
                     names[members]);
            for (i = 0; i < n; i++)
                buf_putf(&text,
                         members == 0 ? "%s\"user-%d\""
                                      : "%s\"/keys/0f8fad5b-d9cb-469f-a165-%012d\"",
                         i == 0 ? "" : ",", i);
            buf_puts(&text, "]}");
            cr_assert_eq(kms_request_parse(&req, buf_str(&text), text.len, DOMAIN, &why),
                         n == 100 ? KMS_CODE_OK : KMS_CODE_MEMBER, "%d of %s", n, names[members]);
            if (n == 100)
                cr_assert_eq(members == 0 ? req.n_auth_ids : req.n_keys, 100);
            kms_request_release(&req);
            buf_release(&text);
        }
    }
}

Test(msg, absent_members_say_so)
{
    static const char text[] = "{\"method\":\"retrieve\",\"uri\":\"/resources/" ID "/keys\"}";
    struct kms_request req;
    const char *why;

    cr_assert_eq(parse(&req, text, &why), KMS_CODE_OK);
    cr_assert_null(req.request_id);
    cr_assert_null(req.bearer);
    cr_assert_str_empty(req.client_id);
    cr_assert_eq(req.ttl, -1);
    cr_assert_eq(req.count, 0);
    cr_assert_eq(req.bound_after, INT64_MIN);
    cr_assert_eq(req.bound_before, INT64_MAX);
    cr_assert(req.has_resource);
    cr_assert_arr_eq(req.resource.b, req.uri.id.b, UUID_LEN);
    kms_request_release(&req);
}

Test(msg, an_authorisation_is_named_by_its_uri_or_by_grantee)
{
    struct kms_request req;
    const char *why;

    cr_assert_eq(parse(&req, "{\"method\":\"delete\",\"uri\":\"/authorizations/" ID "\"}", &why),
                 KMS_CODE_OK);
    cr_assert(req.by_uri);
    cr_assert_eq(req.n_auth_ids, 0);
    kms_request_release(&req);
    cr_assert_eq(parse(&req,
                       "{\"method\":\"delete\",\"uri\":\"/resources/" ID
                       "/authorizations?authId=kms%3A%2F%2F" DOMAIN "%2Fresources%2F" ID2 "\"}",
                       &why),
                 KMS_CODE_OK);
    cr_assert(!req.by_uri);
    cr_assert(req.has_resource);
    cr_assert_eq(req.n_auth_ids, 1);
    cr_assert(req.auth_ids[0].is_resource);
    kms_request_release(&req);
}

Test(msg, what_a_service_asks_with_is_read)
{
    static const char text[] =
        "{\"method\":\"retrieve\",\"uri\":\"/resources/" ID "/keys\",\"count\":7,"
        "\"purpose\":\"ediscovery\",\"matter\":\"" ID2 "\",\"cursor\":\"AQID\"}";
    struct kms_request req;
    char id[UUID_TEXT + 1];
    const char *why;

    cr_assert_eq(parse(&req, text, &why), KMS_CODE_OK);
    cr_expect_str_eq(req.purpose, "ediscovery");
    cr_assert(req.has_matter);
    uuid_format(id, &req.matter);
    cr_expect_str_eq(id, ID2);
    cr_assert_eq(req.cursor_len, 3);
    cr_expect_arr_eq(req.cursor, "\1\2\3", 3);
    cr_expect_eq(req.count, 7);
    kms_request_release(&req);
}

Test(msg, of_a_walk_the_uri_says_purpose_and_matter)
{
    static const struct uuid nil;
    struct kms_request req;
    const char *why;

    cr_assert_eq(parse(&req, "{" WALK "}", &why), KMS_CODE_OK);
    cr_expect_str_eq(req.purpose, "indexing");
    cr_expect(!req.has_matter && req.cursor_len == 0 && req.count == 0);
    kms_request_release(&req);
    cr_assert_eq(parse(&req, "{" CASE "}", &why), KMS_CODE_OK);
    cr_expect_null(req.purpose);
    cr_assert(req.has_matter);
    cr_expect_arr_eq(req.matter.b, req.uri.id.b, UUID_LEN);
    kms_request_release(&req);
    cr_assert_eq(parse(&req, "{" GET ",\"matter\":\"nosuch\"}", &why), KMS_CODE_OK);
    cr_assert(req.has_matter);
    cr_expect_arr_eq(req.matter.b, nil.b, UUID_LEN, "what is no UUID is no matter that there is");
    kms_request_release(&req);
}

Test(msg, a_resource_is_of_the_kind_that_was_said)
{
    static const char *const names[] = {"space", "meeting", "file", "whiteboard", "calendar"};
    struct kms_request req;
    const char *why;
    char text[256];
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(text, sizeof(text), "{" RES ",\"kind\":\"%s\"}", names[i]);
        cr_assert_eq(parse(&req, text, &why), KMS_CODE_OK);
        cr_expect_str_eq(kms_kind_name(req.kind), names[i]);
        kms_request_release(&req);
    }
    cr_assert_eq(parse(&req, "{" RES "}", &why), KMS_CODE_OK);
    cr_expect_eq(req.kind, KMS_KIND_SPACE);
    kms_request_release(&req);
}

Test(msg, recordings_and_main_keys_bring_their_members)
{
    struct kms_request req;
    const char *why;

    cr_assert_eq(parse(&req,
                       "{" RECO ",\"type\":\"transcript\",\"loc\":\"x:y\","
                       "\"tag\":\"AAAAAAAAAAAAAAAAAAAAAA\"}",
                       &why),
                 KMS_CODE_OK);
    cr_expect(req.has_resource);
    cr_expect_str_eq(kms_recording_type_name(req.type), "transcript");
    cr_expect_str_eq(req.loc, "x:y");
    cr_expect_null(req.tag, "there is no file yet");
    kms_request_release(&req);
    cr_assert_eq(parse(&req, "{" DONE ",\"tag\":\"AAAAAAAAAAAAAAAAAAAAAA\"}", &why), KMS_CODE_OK);
    cr_expect_str_eq(req.tag, "AAAAAAAAAAAAAAAAAAAAAA");
    kms_request_release(&req);
    cr_assert_eq(parse(&req, "{" DONE "}", &why), KMS_CODE_OK);
    cr_expect(!req.has_resource && req.loc == NULL && req.tag == NULL);
    kms_request_release(&req);
    cr_assert_eq(parse(&req, "{" CMK ",\"customerMasterKey\":\"AP+A\"}", &why), KMS_CODE_OK);
    cr_expect_str_eq(req.assigned_org, "o");
    cr_assert_eq(req.main_key.len, 3);
    cr_expect_arr_eq(req.main_key.data, "\x00\xff\x80", 3);
    kms_request_release(&req);
    cr_assert_eq(parse(&req, "{" CMKS ",\"keyState\":\"removedclean\"}", &why), KMS_CODE_OK);
    cr_expect_str_eq(kms_main_key_state_name(req.main_state), "REMOVEDCLEAN");
    kms_request_release(&req);
    cr_assert_eq(parse(&req, "{" RES ",\"kind\":\"meeting\",\"security\":\"zero-trust\"}", &why),
                 KMS_CODE_OK);
    cr_expect(req.zero_trust);
    kms_request_release(&req);
}

Test(msg, the_credential_of_a_service_is_handed_on)
{
    static const struct {
        const char *credential;
        int code;
        bool jwk, proof;
    } rows[] = {
        {"{}", 0, false, false},
        {"{\"jwk\":{\"kty\":\"EC\"}}", 0, true, false},
        {"{\"jwk\":{},\"proof\":\"a.b.c\"}", 0, true, true},
        {"{\"jwk\":\"{}\"}", 400002, false, false},
        {"{\"jwk\":[]}", 400002, false, false},
        {"{\"jwk\":null}", 400002, false, false},
        {"{\"jwk\":{},\"proof\":{}}", 400002, true, false},
    };
    struct kms_request req;
    const char *why;
    char text[512];
    size_t i;

    for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(text, sizeof(text),
                 "{\"method\":\"update\",\"uri\":\"/ping\",\"client\":{\"credential\":%s}}",
                 rows[i].credential);
        cr_expect_eq(parse(&req, text, &why), rows[i].code, "%s", rows[i].credential);
        cr_expect_eq(req.cred_jwk != NULL, rows[i].jwk, "%s", rows[i].credential);
        cr_expect_eq(req.proof != NULL, rows[i].proof, "%s", rows[i].credential);
        kms_request_release(&req);
    }
}

/* A create /ecdhe with the members of jwk that are given besides those of a fresh key. */
static int
channel_create(struct kms_request *req, const char *name, const char *value)
{
    EVP_PKEY *key = ecdh_generate();
    json_t *jwk = jwk_from_public(key), *tree;
    struct buf text = BUF_INIT;
    const char *why;
    int code;

    cr_assert_not_null(jwk);
    json_object_set_new(jwk, "kid", json_string("a key of the client's"));
    json_object_set_new(jwk, name, json_string(value));
    tree =
        json_pack("{s:s,s:s,s:o}", "method", "create", "uri", "kms://" DOMAIN "/ecdhe", "jwk", jwk);
    cr_assert_eq(kms_json_put(&text, tree), KMS_OK);
    code = kms_request_parse(req, buf_str(&text), text.len, DOMAIN, &why);
    json_decref(tree);
    EVP_PKEY_free(key);
    buf_release(&text);
    return code;
}

Test(msg, a_channel_takes_a_public_p256_key_and_nothing_private)
{
    struct kms_request req;

    cr_assert_eq(channel_create(&req, "use", "enc"), KMS_CODE_OK);
    cr_assert_eq(req.op, OP_CHANNEL_CREATE);
    cr_assert_not_null(req.jwk);
    kms_request_release(&req);
    cr_assert_eq(channel_create(&req, "d", "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"),
                 KMS_CODE_MEMBER);
    kms_request_release(&req);
    cr_assert_eq(channel_create(&req, "x", "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"),
                 KMS_CODE_MEMBER, "a point that is not on the curve");
    kms_request_release(&req);
    cr_assert_eq(channel_create(&req, "crv", "P-521"), KMS_CODE_ALGORITHM);
    kms_request_release(&req);
    cr_assert_eq(channel_create(&req, "kty", "RSA"), KMS_CODE_ALGORITHM);
    kms_request_release(&req);
}

struct date {
    char text[48];
    int64_t ms; /* -1: refused */
};

ParameterizedTestParameters(date, reads_rfc_3339)
{
    static struct date rows[] = {
        {"1970-01-01T00:00:00Z", 0},
        {"1970-01-01T00:00:00.001Z", 1},
        {"1970-01-01t00:00:00.5z", 500},
        {"1970-01-01T00:00:00.0019999999999999999999Z", 1},
        {"1970-01-01T01:30:00+01:30", 0},
        {"1969-12-31T23:00:00-01:00", 0},
        {"2026-11-22T13:55:00.000Z", INT64_C(1795355700000)},
        {"2024-02-29T00:00:00Z", INT64_C(1709164800000)},
        {"9999-12-31T23:59:59.999Z", INT64_C(253402300799999)},
        {"2023-02-29T00:00:00Z", -1},
        {"2026-04-31T00:00:00Z", -1},
        {"2026-13-01T00:00:00Z", -1},
        {"2026-00-01T00:00:00Z", -1},
        {"2026-01-00T00:00:00Z", -1},
        {"2026-01-01T24:00:00Z", -1},
        {"2026-01-01T00:60:00Z", -1},
        {"2016-12-31T23:59:60Z", -1},
        {"2026-01-01T00:00:00", -1},
        {"2026-01-01 00:00:00Z", -1},
        {"2026-01-01T00:00:00.Z", -1},
        {"2026-01-01T00:00:00,5Z", -1},
        {"2026-01-01T00:00Z", -1},
        {"2026-01-01", -1},
        {"2026-01-01T00:00:00+0100", -1},
        {"2026-01-01T00:00:00+24:00", -1},
        {"2026-01-01T00:00:00Zx", -1},
        {" 2026-01-01T00:00:00Z", -1},
        {"+2026-01-01T00:00:00Z", -1},
        {"20260101T000000Z", -1},
        {"", -1},
    };

    return PARAMS(rows);
}

ParameterizedTest(struct date *row, date, reads_rfc_3339)
{
    int64_t ms;

    cr_assert_eq(kms_date_parse(&ms, row->text), row->ms < 0 ? KMS_ERR_SYNTAX : KMS_OK, "%s",
                 row->text);
    if (row->ms >= 0)
        cr_assert_eq(ms, row->ms, "%s: %lld", row->text, (long long)ms);
}

Test(date, writes_utc_with_milliseconds)
{
    char text[KMS_DATE_LEN + 1];
    int64_t ms;

    kms_date_format(text, INT64_C(1795355700007));
    cr_assert_str_eq(text, "2026-11-22T13:55:00.007Z");
    kms_date_format(text, -1);
    cr_assert_str_eq(text, "1969-12-31T23:59:59.999Z");
    cr_assert_eq(kms_date_parse(&ms, text), KMS_OK);
    cr_assert_eq(ms, -1);
    kms_date_format(text, INT64_MAX);
    cr_assert_str_eq(text, "9999-12-31T23:59:59.999Z");
    kms_date_format(text, INT64_MIN);
    cr_assert_str_eq(text, "0000-01-01T00:00:00.000Z");
}

Test(answer, has_the_members_of_the_protocol)
{
    json_t *id = json_string("r-1"), *answer;
    struct buf text = BUF_INIT;

    answer = kms_answer(200, id);
    cr_assert_eq(kms_json_put(&text, answer), KMS_OK);
    cr_assert_str_eq(buf_str(&text), "{\"status\":200,\"requestId\":\"r-1\"}");
    json_decref(answer);
    buf_reset(&text);

    answer = kms_answer_error(KMS_CODE_BOUND, NULL, "bound");
    cr_assert_eq(kms_json_put(&text, answer), KMS_OK);
    cr_assert_str_eq(buf_str(&text), "{\"status\":409,\"reason\":\"bound\",\"errorCode\":409001}");
    json_decref(answer);
    buf_reset(&text);

    answer = kms_answer_error(KMS_CODE_RESET, id, NULL);
    cr_assert_str_eq(json_string_value(json_object_get(answer, "reason")),
                     kms_code_reason(KMS_CODE_RESET));
    cr_assert_gt(strlen(kms_code_reason(KMS_CODE_RESET)), 0);
    json_decref(answer);
    json_decref(id);
    buf_release(&text);
    cr_assert_str_empty(kms_code_reason(123456));
}
