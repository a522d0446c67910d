// Blocks that the unit is made of. FP16 codes have the infinities and NaN taken out before they come here.

// A 40-bit magnitude: FP16 as a whole number of 2^-24.
module nli_fixed (
    input  wire [14:0] code,
    output wire [39:0] magnitude
);
    wire normal = |code[14:10];
    wire [4:0] shift = normal ? code[14:10] - 5'd1 : 5'd0;
    assign magnitude = {29'd0, normal, code[9:0]} << shift;
endmodule

// Shifts left until the top bit is set, but not by more than `room`; `count` is by how much.
module nli_normalise #(
    parameter W = 41,
    parameter C = $clog2(W)
) (
    input  wire [W-1:0] in,
    input  wire [C-1:0] room,
    output wire [W-1:0] out,
    output wire [C-1:0] count
);
    wire [W-1:0] moved [0:C];
    wire [C-1:0] left  [0:C];
    assign moved[C] = in;
    assign left[C]  = room;
    genvar i;
    generate
        for (i = C - 1; i >= 0; i = i - 1) begin : halve
            assign count[i] = ~|moved[i+1][W-1-:(1<<i)] & (left[i+1] >= (1 << i));
            assign moved[i] = count[i] ? moved[i+1] << (1 << i) : moved[i+1];
            assign left[i]  = count[i] ? left[i+1] - (1 << i) : left[i+1];
        end
    endgenerate
    assign out = moved[0];
endmodule

// a - b: its sign, the 16 leading bits of its magnitude, and how far these are below 2^16: lead[15] stands for
// 2^(16 - below).
module nli_difference (
    input  wire [15:0] a,
    input  wire [15:0] b,
    output wire        negative,
    output wire [15:0] lead,
    output wire [5:0]  below
);
    wire [39:0] a_magnitude, b_magnitude;
    nli_fixed a_fixed (.code(a[14:0]), .magnitude(a_magnitude));
    nli_fixed b_fixed (.code(b[14:0]), .magnitude(b_magnitude));
    wire [41:0] a_signed = a[15] ? -{2'd0, a_magnitude} : {2'd0, a_magnitude};
    wire [41:0] b_signed = b[15] ? -{2'd0, b_magnitude} : {2'd0, b_magnitude};
    wire [41:0] rise = a_signed - b_signed;
    assign negative = rise[41];
    wire [41:0] magnitude = negative ? -rise : rise;
    wire [40:0] normal;
    nli_normalise #(.W(41)) normalise (.in(magnitude[40:0]), .room(6'd63), .out(normal), .count(below));
    assign lead = normal[40:25];
endmodule

// The nearest FP16 number, ties to even, saturated; zero is +0. magnitude[41] stands for 2^(15 + power), where the power
// of a range reduction comes as room = 29 + power: by so many places a number can be shifted until it is subnormal.
module nli_round (
    input  wire        negative,
    input  wire [41:0] magnitude,
    input  wire [5:0]  room,
    output wire [15:0] code
);
    wire [41:0] normal;
    wire [5:0]  count;
    nli_normalise #(.W(42)) normalise (.in(magnitude), .room(room), .out(normal), .count(count));
    wire up = normal[30] & (normal[31] | (|normal[29:0]));
    wire [5:0]  exponent = room - count;  // less one: the leading bit adds it, and so does a carry
    wire [16:0] rounded = {1'b0, exponent, 10'd0} + {6'd0, normal[41:31]} + {16'd0, up};
    wire [14:0] saturated = rounded > 17'h7BFF ? 15'h7BFF : rounded[14:0];
    assign code = {negative & (|saturated), saturated};
endmodule

// A memory of one write port and one read port whose result is registered, as a compiled SRAM has it.
module nli_bank #(
    parameter W = 16,
    parameter DEPTH = 130,
    parameter A = $clog2(DEPTH)
) (
    input  wire         clk,
    input  wire         write,
    input  wire [A-1:0] write_at,
    input  wire [W-1:0] write_word,
    input  wire [A-1:0] read_at,
    output reg  [W-1:0] read_word
);
    reg [W-1:0] words [0:DEPTH-1];
    always @(posedge clk) begin
        if (write) words[write_at] <= write_word;
        read_word <= words[read_at];
    end
endmodule
