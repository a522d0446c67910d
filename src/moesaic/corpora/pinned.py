"""What each corpus is with its own options: rows of the parts, and a hash of all of them, fold by fold.

Results on a corpus can be compared where these agree. A change that moves them makes another corpus: tell it in the
changelog.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pinned:
    """A fold.

    Args:
        rows: of train, validation and test. sha256: of the sha256 (hexadecimal) of their three files, joined.
    """

    rows: tuple[int, ...]
    sha256: str


def joined(digests: Iterable[str]) -> str:
    """Return the hash that stands for the files of a fold."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


FOLDS: Mapping[str, tuple[Pinned, ...]] = {
    "domains": (
        Pinned((3414, 589, 1097), "d1f73b21281335d6c779979eb7a6e5ffd464741203f7a31e43dec15d7af215f0"),
        Pinned((3535, 492, 1073), "697813dafceb4492d2beb8d08279684e78d52d20b5efb333a52c313d3bcf8656"),
        Pinned((3576, 512, 1012), "aca5846297e2a1d119f87771a5513b987f831c4e2805fbaf86e8faeb5d9b9ce5"),
        Pinned((3652, 477, 971), "d45b663234d0dc72fef03f492dc9a02e9ede3035c31f40e11dca3f965e1759f2"),
        Pinned((3578, 575, 947), "b418a5042c8524e474a00ac3016599e0fafd6726062754c58332d3d23ac09456"),
    ),
    "emoji": (
        Pinned((2228, 348, 696), "0bbdda398dfce056028d9565f60673dbb3f9be3b3b9282327ce3b4569508d9fa"),
        Pinned((2228, 356, 688), "a7bafe001a23105ba350ab8d14af998387cdc35ad1f1e135878873549cab0171"),
        Pinned((2284, 288, 700), "ca043113add73f2e00f0115af247b9386f270074af2525743ec251aa09939e4a"),
        Pinned((2356, 280, 636), "75ff40553b41f8cee901e50679a6e9c6c366d59d994e2624339ff163571b9821"),
        Pinned((2376, 344, 552), "66a4913905ca5f9448d064efa4653883af5dd7136fe7260501e029c253edbda0"),
    ),
    "emoji_names": (
        Pinned((31388, 4900, 9744), "b669f1b90f0bf7fe555d115cdaebd04281bc4b18d71ee0855d27dca7a322fc65"),
        Pinned((31332, 5040, 9660), "1f52bd04638c63b131bd226230b282b5e6c5764c74c3ec7d6b9ccced31dd48a3"),
        Pinned((32116, 4060, 9856), "6a5fa9c6fc7fca3513976ecef3f312bb21fd8bda546815ce354bcf7ccb7dead7"),
        Pinned((33124, 3976, 8932), "b41d608b3c6e36b35a92eb30db060811677e5975ffad738e12fb1a2c2f5e2353"),
        Pinned((33376, 4816, 7840), "21583c7386213585d06b0934fc9ce6226b2846eb2eb42dd98f87631bf3e00999"),
    ),
    "manual": (
        Pinned((13948, 3868, 5905), "8ce4e373679933e138224968c0ca47b65fdb084cc8f2395fd52085ab0c36750a"),
        Pinned((17489, 524, 5708), "cb210aad31227ee6ee2d66976cb0b2637696a7359167def55f27e69d77e45339"),
        Pinned((18309, 2556, 2856), "087c7cac2a84c64fd5467076546bf7383ee27f5f083571a4fe8612242255c0b3"),
        Pinned((16708, 2556, 4457), "c9533959bfb4385d768850e757a07038fb908de8a8316942828bcfc34e6aeac0"),
        Pinned((15223, 3703, 4795), "d5d8bedbdda1edd7d6d148039c93988ed0fec3a2a9ecb0746cb4e77bf1b1a9a3"),
    ),
    "stamps_pictures": (
        Pinned((544, 64, 176), "f8a1dba3806370a8de597fe8d3ff1a558d08952882dfcc538b909750d68eaae0"),
        Pinned((542, 96, 146), "37a87b025f499b526aa9ed1526b81b7f822ed9ea976ac3dbc25555f5718d6312"),
        Pinned((540, 68, 176), "ffd5cec2ab463e8c6467f25fd65ac810d245dec4c6ea8c36e135b457896d5634"),
        Pinned((578, 75, 131), "5bd9397b71c1df80b4aebc488edc5f588ef12206c6b514e2c052236159d28eda"),
        Pinned((522, 107, 155), "a505b1301f3bac19ebcfab31b5c40e4f410f49358c3434f31eb76306057e7539"),
    ),
    "stamps_speech": (
        Pinned((16240, 553, 1327), "d9a436580191a42e639d7ee3489e94fb9a6b2e6cefbbb3af8240dd1d578ff0a2"),
        Pinned((16256, 689, 1187), "c63e5467a43fffc8eb52382571342043c1be4f30aa68c5522aa836e855f8efe0"),
        Pinned((16368, 523, 1325), "1353337b19fbb120e31753f6cdf7b9f8b0de513056ab9f97e3638a0898ef43ae"),
        Pinned((17572, 511, 1036), "66169f7ee11397f106e89a2f67fde7474bb74528cc58f92912f4ead20b461c52"),
        Pinned((16404, 774, 1065), "f2153610194f9aad3ec15f4e0e23624fb75adbb582a8e98892a029632474fe6e"),
    ),
}
