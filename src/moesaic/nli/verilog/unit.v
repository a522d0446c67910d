// A scalar function by non-uniform linear interpolation: FP16 in, FP16 out, a result every cycle, 5 cycles later.
//
// M cut points make M - 1 intervals: the first and last are one chord, each other one BINS equal chords. All numbers are
// loaded, so the same circuit computes any function. While tables are loaded, no input may be valid.
//
//   load_kind  load_index      load_data
//   0          0 .. M - 1      cut point, FP16
//   1          0 .. M - 2      bins per unit of x in the interval, FP32 of at least 2^-17
//   2          0 .. ENTRIES-1  value at a node, FP16
//   3          0               range reduction: 0 none, 1 rsqrt, 2 reciprocal, 3 sqrt
//
// Infinities count as the largest numbers, NaN gives 7E00, zero is +0.

module nli_unit #(
    parameter M = @M@,
    parameter BINS = @BINS@
) (
    input  wire        clk,
    input  wire        rst,
    input  wire        load,
    input  wire [1:0]  load_kind,
    input  wire [15:0] load_index,
    input  wire [31:0] load_data,
    input  wire        in_valid,
    input  wire [15:0] in,
    output wire        out_valid,
    output wire [15:0] out
);
    localparam ENTRIES = BINS * (M - 3) + 3;
    localparam I = $clog2(M);        // bits of an interval
    localparam G = $clog2(ENTRIES);  // bits of a value's index
    localparam B = $clog2(BINS) + 1; // bits of a place before the point; the top one is never set
    localparam DEPTH = (ENTRIES + 1) / 2;
    localparam A = $clog2(DEPTH);

    // The table. Cut points are kept as keys, which ascend as whole numbers; of FP32, the sign and unused exponents go.
    reg [15:0] cut_keys [0:M-1];
    reg [28:0] multipliers [0:M-2];
    reg [1:0]  reduction;
    wire [7:0] load_exponent = load_data[30:23] - 8'd110;
    always @(posedge clk) begin
        if (load && load_kind == 2'd0) cut_keys[load_index[I-1:0]] <= key_of(load_data[15:0]);
        if (load && load_kind == 2'd1) multipliers[load_index[I-1:0]] <= {load_exponent[5:0], load_data[22:0]};
        if (load && load_kind == 2'd3) reduction <= load_data[1:0];
    end

    function [15:0] key_of(input [15:0] code);
        key_of = code[14:0] == 15'd0 ? 16'h8000 : code[15] ? ~code : {1'b1, code[14:0]};
    endfunction

    function [15:0] code_of(input [15:0] key);
        code_of = key[15] ? {1'b0, key[14:0]} : ~key;
    endfunction

    reg [5:1] valid, nan;
    always @(posedge clk) begin
        valid <= rst ? 5'd0 : {valid[4:1], in_valid};
        nan   <= {nan[4:1], (&in[14:10]) & (|in[9:0])};
    end

    // 1. Compare: the interval, and the distance from its cut point.
    wire [15:0] x;
    wire [5:0]  room;
    nli_reduce reduce (.reduction(reduction), .in(in), .x(x), .room(room));
    wire [15:0] key = key_of(x);
    wire [(1<<I)-1:0] reached;
    assign reached[0] = 1'b1;
    genvar c;
    generate
        for (c = 1; c < 1 << I; c = c + 1) begin : compare
            if (c < M) assign reached[c] = key >= cut_keys[c];
            else assign reached[c] = 1'b0;
        end
    endgenerate
    reg [I-1:0] interval;
    integer b;
    always @* begin  // the ones of a thermometer, counted by halving
        interval = 0;
        for (b = I - 1; b >= 0; b = b - 1) interval[b] = reached[interval + (1 << b)];
    end
    wire        below_cut;
    wire [15:0] distance;
    wire [5:0]  distance_below;
    nli_difference to_cut (
        .a(x), .b(code_of(cut_keys[interval])),
        .negative(below_cut), .lead(distance), .below(distance_below)
    );

    reg [I-1:0] interval1;
    reg [15:0]  distance1;
    reg [5:0]   distance_below1, room1;
    always @(posedge clk) begin
        interval1       <= interval;
        distance1       <= below_cut ? 16'd0 : distance;
        distance_below1 <= distance_below;
        room1           <= room;
    end

    // 2. Place: distance times multiplier; before the point the bin, behind it the place in the bin. product[39] stands
    //    for 2^above; from 2^-1 on, the product is shifted so that the point is behind the top B bits.
    wire        last = interval1 == M - 1;
    wire [28:0] multiplier = last ? 29'd0 : multipliers[interval1];
    wire [23:0] significand = {!last, multiplier[22:0]};
    wire [39:0] product = distance1 * significand;
    wire [6:0]  above = {1'b0, multiplier[28:23]} - {1'b0, distance_below1};
    wire [6:0]  shift = above + 7'd1;
    wire        tiny = shift[6];
    wire [B+39:0] placed = {{B{1'b0}}, product} << (tiny ? {B{1'b0}} : shift[B-1:0]);
    wire [G-1:0] base = interval1 == 0 ? 0 : last ? ENTRIES - 1 : (interval1 - 1) * BINS + 1;
    wire [G-1:0] first = base + placed[B+39:40];

    reg          last2, odd2;
    reg [39:0]   part2;
    reg [5:0]    part_below2, room2;
    always @(posedge clk) begin
        last2       <= last;
        odd2        <= first[0];
        part2       <= placed[39:0];
        part_below2 <= tiny ? -shift[5:0] : 6'd0;
        room2       <= room1;
    end

    // 3. Read: the values at both ends of the chord, one from each bank; their difference, and the 16 leading bits of
    //    the place between them: lead[15] stands for 2^(-1 - below).
    wire [G-1:0] even_at = first + 1'b1;
    wire [15:0]  even_word, odd_word;
    wire load_value = load && load_kind == 2'd2;
    nli_bank #(.DEPTH(DEPTH)) even (
        .clk(clk), .write(load_value && !load_index[0]), .write_at(load_index[A:1]), .write_word(load_data[15:0]),
        .read_at(even_at[A:1]), .read_word(even_word)
    );
    nli_bank #(.DEPTH(DEPTH)) odd (
        .clk(clk), .write(load_value && load_index[0]), .write_at(load_index[A:1]), .write_word(load_data[15:0]),
        .read_at(first[A:1]), .read_word(odd_word)
    );
    wire [15:0] y0 = odd2 ? odd_word : even_word;
    wire [15:0] y1 = last2 ? y0 : odd2 ? even_word : odd_word;
    wire        falls;
    wire [15:0] rise;
    wire [5:0]  rise_below;
    nli_difference along (.a(y1), .b(y0), .negative(falls), .lead(rise), .below(rise_below));
    wire [39:0] part;
    wire [5:0]  part_count;
    nli_normalise #(.W(40)) normalise (.in(part2), .room(6'd63), .out(part), .count(part_count));

    reg [15:0] y3, part3, rise3;
    reg        falls3;
    reg [6:0]  below3;
    reg [5:0]  room3;
    always @(posedge clk) begin
        y3     <= y0;
        part3  <= part[39:24];
        rise3  <= rise;
        falls3 <= falls;
        below3 <= {1'b0, part_below2} + {1'b0, part_count} + {1'b0, rise_below};
        room3  <= room2;
    end

    // 4. Blend: value plus or minus place times difference, in multiples of 2^-26; rounded a cycle later.
    wire [31:0] step = part3 * rise3;
    wire [42:0] change = {step, 11'd0} >> below3;
    wire        negative;
    wire [41:0] magnitude;
    nli_add add (.y(y3), .falls(falls3), .change(change), .negative(negative), .magnitude(magnitude));

    reg        negative4;
    reg [41:0] magnitude4;
    reg [5:0]  room4;
    always @(posedge clk) begin
        negative4  <= negative;
        magnitude4 <= magnitude;
        room4      <= room3;
    end

    wire [15:0] rounded;
    nli_round round (.negative(negative4), .magnitude(magnitude4), .room(room4), .code(rounded));
    reg [15:0] result;
    always @(posedge clk) result <= nan[4] ? 16'h7E00 : rounded;
    assign out = result;
    assign out_valid = valid[5];
endmodule

// Takes the infinities out and, with a range reduction, brings x = m 2^(k e) to m; the result's power of two, -e or e,
// goes to the end as room = 29 + power.
module nli_reduce (
    input  wire [1:0]  reduction,
    input  wire [15:0] in,
    output wire [15:0] x,
    output wire [5:0]  room
);
    wire [15:0] finite = &in[14:10] ? {in[15], 15'h7BFF} : in;
    wire [14:0] positive = finite[15] || finite == 16'd0 ? 15'd1 : finite[14:0];
    wire normal = |positive[14:10];
    wire [10:0] significand;
    wire [3:0]  count;
    nli_normalise #(.W(11)) normalise (
        .in({normal, positive[9:0]}), .room(4'd15), .out(significand), .count(count)
    );
    wire [5:0] e = (normal ? {1'b0, positive[14:10]} : 6'd1) - 6'd15 - {2'd0, count};
    wire [5:0] half = {e[5], e[5:1]};
    wire [4:0] exponent = reduction != 2'd2 && e[0] ? 5'd16 : 5'd15;
    assign x = reduction == 2'd0 ? finite : {1'b0, exponent, significand[9:0]};
    wire [5:0] power = reduction == 2'd0 ? 6'd0 : reduction == 2'd1 ? -half : reduction == 2'd2 ? -e : half;
    assign room = 6'd29 + power;
endmodule
